"""The host networks: torchvision's ResNet at any width, and the ResNets for CIFAR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from layergraft.hosts.resnet_blocks import BLOCKS, NORM_LAYERS, PadShortcut, initialise
from layergraft.hosts.resnets import ResNetSpec
from layergraft.seeds import derive_seed


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The network that `make` gives, initialised from two streams of `seed`: the trunk, and the head `fc`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "host"))
        network = make()
        torch.default_generator.manual_seed(derive_seed(seed, "head"))
        cast(nn.Linear, network.fc).reset_parameters()
    return network


class ScaledResNet(ResNet):
    """torchvision's class fixes 64 channels; this scales every stage by `spec.width / 64`, and keeps names and order.

    Takes `x_NCHW` float, gives logits (N, `num_classes`). `groups` and `width_per_group` are torchvision's.
    """

    def __init__(
        self, spec: ResNetSpec, in_channels: int, num_classes: int, block: str, blocks: Sequence[int], groups: int,
        width_per_group: int, *, small_stem: bool,
    ) -> None:  # fmt: skip
        self.width = spec.width  # before the parent's, which calls _make_layer
        kind, norm = BLOCKS[block, spec.skips], NORM_LAYERS[spec.norm]
        super().__init__(kind, blocks, groups=groups, width_per_group=width_per_group, norm_layer=norm)
        kernel_size, stride, padding = (3, 1, 1) if small_stem else (7, 2, 3)
        self.conv1 = nn.Conv2d(in_channels, self.width, kernel_size, stride, padding, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # as the parent does
        self.bn1 = norm(self.width)
        if small_stem:
            self.maxpool = nn.Identity()
        self.fc = nn.Linear(8 * self.width * kind.expansion, num_classes)

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Module:
        if planes == 64:  # layer1, which follows the stem
            self.inplanes = self.width
        layer: nn.Module = super()._make_layer(block, planes * self.width // 64, blocks, stride, dilate)
        return layer


class CifarResNet(nn.Module):
    """He et al. 2016, section 4.2: a 3 x 3 stem, three stages of basic blocks, skips without parameters.

    Takes `x_NCHW` float, gives logits (N, `num_classes`). Names are torchvision's: conv1, bn1, layer1 to layer3, fc.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, spec: ResNetSpec, in_channels: int, num_classes: int, blocks: int) -> None:
        super().__init__()
        kind, norm, width = BLOCKS["basic", spec.skips], NORM_LAYERS[spec.norm], spec.width
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        channels = width
        for number, (planes, stride) in enumerate([(width, 1), (2 * width, 2), (4 * width, 2)], 1):
            stage = []
            for index in range(blocks):
                step = stride if index == 0 else 1
                shortcut = PadShortcut(step, planes - channels) if step != 1 or channels != planes else None
                stage.append(kind(channels, planes, step, shortcut, 1, 64, 1, norm))
                channels = planes
            self.add_module(f"layer{number}", nn.Sequential(*stage))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
