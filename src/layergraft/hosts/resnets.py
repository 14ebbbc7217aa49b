"""Residual networks: torchvision's, at any width, with the ImageNet stem or one for small images; and those for CIFAR,
6n + 2 layers in three stages of n basic blocks.

Source: He et al., Deep Residual Learning for Image Recognition, 2016, for CIFAR section 4.2, with skips of option A;
Zagoruyko & Komodakis, Wide Residual Networks, 2016; Xie et al., Aggregated Residual Transformations, 2017;
torchvision/models/resnet.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layergraft.config.registry import register
from layergraft.config.schema import HostSpec
from layergraft.errors import require, unknown

if TYPE_CHECKING:
    from torch import nn

# Name -> (block, blocks in each stage, groups, width per group).
NETWORKS = {
    "resnet18": ("basic", (2, 2, 2, 2), 1, 64),
    "resnet34": ("basic", (3, 4, 6, 3), 1, 64),
    "resnet50": ("bottleneck", (3, 4, 6, 3), 1, 64),
    "resnet101": ("bottleneck", (3, 4, 23, 3), 1, 64),
    "resnet152": ("bottleneck", (3, 8, 36, 3), 1, 64),
    "wide_resnet50_2": ("bottleneck", (3, 4, 6, 3), 1, 128),
    "resnext50_32x4d": ("bottleneck", (3, 4, 6, 3), 32, 4),
}
CIFAR_BLOCKS = {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet56": 9, "resnet110": 18}
STEMS = ("auto", "imagenet", "small")
SMALL = 64  # pixels: images with a shorter side than this have the small stem by default


@register("host", "cifar_resnet")
@dataclass
class CifarResNet(HostSpec):
    """At width 16 the networks of the paper: 0.27, 0.46, 0.85 and 1.7 million parameters from resnet20 on."""

    width: int = 16
    """Channels of the stem and of layer1; layer2 and layer3 have 2 and 4 times as many."""

    def check(self, at: str) -> None:
        super().check(at)
        if self.name not in CIFAR_BLOCKS:
            raise unknown("cifar_resnet host", self.name, CIFAR_BLOCKS)
        none = f"torchvision has no weights for {self.name}, and there is no such file"
        require(self.weights_name() is None, f"{at}.weights is '{self.weights}': {none}")

    def build(self, image: tuple[int, int, int], num_classes: int, seed: int) -> nn.Module:
        """As `TorchvisionResNet.build`."""

        from layergraft.hosts import resnet_modules

        return resnet_modules.seeded(
            lambda: resnet_modules.CifarResNet(self, image[0], num_classes, CIFAR_BLOCKS[self.name]), seed
        )


@register("host", "torchvision_resnet")
@dataclass
class TorchvisionResNet(HostSpec):
    """At width 64 with the ImageNet stem, batch norm and skips the network is torchvision's own, tensor by tensor."""

    width: int = 64
    """Channels of the stem and of layer1 (before a bottleneck's factor 4); later stages have 2, 4 and 8 times as many."""
    stem: str = "auto"
    """imagenet: 7 x 7 convolution of stride 2 and max pooling; small: 3 x 3 of stride 1 without, for images under 64
    pixels; auto: imagenet with torchvision's weights or images of 64 pixels or more, small otherwise."""

    def check(self, at: str) -> None:
        super().check(at)
        if self.name not in NETWORKS:
            raise unknown("torchvision_resnet host", self.name, NETWORKS)
        if self.stem not in STEMS:
            raise unknown(f"{at}.stem", self.stem, STEMS)
        _, _, groups, per_group = NETWORKS[self.name]
        step = 64 // per_group if groups > 1 else 1
        need = f"{self.name} needs a multiple of {step} for its {groups} groups"
        require(self.width % step == 0, f"{at}.width is {self.width}; {need}")

    def build(self, image: tuple[int, int, int], num_classes: int, seed: int) -> nn.Module:
        """The network on the CPU, initialised as torchvision does, from two streams of `seed`: trunk and head.

        It takes `x_NCHW` float with images of shape `image` (channels, height, width) and gives logits
        (N, `num_classes`). `weights` are not read here: `layergraft.hosts.weights.pretrained` does.
        """
        from layergraft.hosts.resnet_modules import ScaledResNet, seeded

        auto_small = min(image[1:]) < SMALL and not self.weights_name()
        small_stem = auto_small if self.stem == "auto" else self.stem == "small"
        return seeded(
            lambda: ScaledResNet(self, image[0], num_classes, *NETWORKS[self.name], small_stem=small_stem), seed
        )
