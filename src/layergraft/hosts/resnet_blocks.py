"""The parts that hosts are made of: norm layers, and residual blocks with or without their skip.

The blocks are torchvision's own classes, so that its weights fit them name by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from layergraft.errors import require
from layergraft.store.files import machine_memory

CHANNELS_PER_GROUP = 16  # of group norm: Wu & He, Group Normalization, 2018, table 3


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of 16 channels, fewer and larger groups where 16 does not divide `channels`; one of all where there are fewer."""
    groups = max(1, channels // CHANNELS_PER_GROUP)
    return nn.GroupNorm(next(number for number in range(groups, 0, -1) if channels % number == 0), channels)


NORM_LAYERS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": group_norm}


class _Plain:
    """What makes a block of torchvision's one without its skip (He et al. 2016, the plain networks of section 4.1)."""

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: Any = None, *rest: Any, **named: Any
    ) -> None:
        block: Any = super()  # one of torchvision's, which have no types
        block.__init__(inplanes, planes, stride, None, *rest, **named)


class PlainBasicBlock(_Plain, BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return y


class PlainBottleneck(_Plain, Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        y: Tensor = self.relu(self.bn3(self.conv3(x)))
        return y


class PadShortcut(nn.Module):
    """The skip without parameters (option A of He et al. 2016, section 3.3): every `stride`-th pixel, zeros as new channels."""

    def __init__(self, stride: int, added: int) -> None:
        super().__init__()
        self.stride, self.added = stride, added

    def forward(self, x_NCHW: Tensor) -> Tensor:
        half = self.added // 2
        return F.pad(x_NCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.added - half))


BLOCKS: dict[tuple[str, bool], Any] = {  # torchvision's classes have no types
    ("basic", True): BasicBlock,
    ("basic", False): PlainBasicBlock,
    ("bottleneck", True): Bottleneck,
    ("bottleneck", False): PlainBottleneck,
}


def conv_shortcut(in_channels: int, out_channels: int, stride: int, norm: str) -> nn.Sequential:
    """The skip with a 1 x 1 convolution and a norm, as torchvision has it."""
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, NORM_LAYERS[norm](out_channels))


def initialise(module: nn.Module) -> None:
    """torchvision's initial weights for a ResNet: He's normal by fan out for convolutions, 1 and 0 for norms."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes, on the meta device: shapes without weights, and no random numbers drawn."""
    with torch.device("meta"):
        return build().to("meta")  # what is a copy of a module that lies elsewhere, too


def require_room(where: str, network: nn.Module) -> None:
    """Raise UserError where the weights of `network` (on any device), a gradient and two moments of each, are more than this
    machine's whole memory."""
    needed, there = 4 * sum(4 * parameter.numel() for parameter in network.parameters()), machine_memory()
    takes = f"takes {needed / 2**30:,.0f} GiB for its weights and their training"
    require(needed <= there, f"{where} {takes}; this machine has {there / 2**30:,.0f} GiB")
