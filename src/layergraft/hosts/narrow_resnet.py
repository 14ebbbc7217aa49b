"""torchvision's ResNet with basic blocks, made narrower or wider than 64 channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


class NarrowResNet(ResNet):
    """torchvision's class fixes 64 channels; this scales every stage by `width / 64` and keeps all names and order.

    Takes `x_NCHW` float, gives logits (N, `num_classes`).
    """

    def __init__(self, blocks: Sequence[int], width: int, small_stem: bool, in_channels: int, num_classes: int) -> None:
        self.width = width  # before the parent's, which calls _make_layer
        super().__init__(BasicBlock, list(blocks))
        kernel_size, stride, padding = (3, 1, 1) if small_stem else (7, 2, 3)
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size, stride, padding, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # as the parent does
        self.bn1 = nn.BatchNorm2d(width)
        if small_stem:
            self.maxpool = nn.Identity()
        self.fc = nn.Linear(8 * width, num_classes)

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:  # layer1, which follows the stem
            self.inplanes = self.width
        return super()._make_layer(block, planes * self.width // 64, blocks, stride, dilate)
