"""The host networks: torchvision's ResNet at any width, and the ResNets for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from layergraft.hosts.blocks import BLOCKS, NORM_LAYERS, PadShortcut, initialise


class ScaledResNet(ResNet):
    """torchvision's class fixes 64 channels; this scales every stage by `width / 64` and keeps all names and order.

    Takes `x_NCHW` float, gives logits (N, `num_classes`). `groups` and `width_per_group` are torchvision's.
    """

    def __init__(
        self, block: str, blocks: Sequence[int], width: int, *, small_stem: bool, norm: str, skips: bool,
        in_channels: int, num_classes: int, groups: int = 1, width_per_group: int = 64,
    ) -> None:  # fmt: skip
        self.width = width  # before the parent's, which calls _make_layer
        kind = BLOCKS[block, skips]
        super().__init__(
            kind, list(blocks), groups=groups, width_per_group=width_per_group, norm_layer=NORM_LAYERS[norm]
        )
        kernel_size, stride, padding = (3, 1, 1) if small_stem else (7, 2, 3)
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size, stride, padding, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # as the parent does
        self.bn1 = NORM_LAYERS[norm](width)
        if small_stem:
            self.maxpool = nn.Identity()
        self.fc = nn.Linear(8 * width * kind.expansion, num_classes)

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

    def __init__(
        self, blocks: int, width: int, *, norm: str, skips: bool, in_channels: int, num_classes: int
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = NORM_LAYERS[norm](width)
        self.relu = nn.ReLU(inplace=True)
        kind, channels = BLOCKS["basic", skips], width
        for number, (planes, stride) in enumerate([(width, 1), (2 * width, 2), (4 * width, 2)], 1):
            stage = []
            for index in range(blocks):
                step = stride if index == 0 else 1
                shortcut = PadShortcut(step, planes - channels) if step != 1 or channels != planes else None
                stage.append(kind(channels, planes, step, shortcut, 1, 64, 1, NORM_LAYERS[norm]))
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
