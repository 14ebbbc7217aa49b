"""Residual networks: torchvision's, at any width, with the ImageNet stem or one for small images; and those for CIFAR,
6n + 2 layers in three stages of n basic blocks.

Source: He et al., Deep Residual Learning for Image Recognition, 2016, for CIFAR section 4.2, with skips of option A;
Zagoruyko & Komodakis, Wide Residual Networks, 2016; Xie et al., Aggregated Residual Transformations, 2017;
torchvision/models/resnet.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from omegaconf import MISSING

from layergraft.config.registry import bounded, one_of, register
from layergraft.config.schema import HostSpec
from layergraft.errors import require, unknown
from layergraft.hosts.families import BlockArchitecture, Family, register_family
from layergraft.hosts.layer_architectures import DEFAULT_FAMILY, Slot, Stage, norm_name

if TYPE_CHECKING:
    from torch import Tensor, nn

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


@dataclass(frozen=True)
class Block(BlockArchitecture):
    """A residual block of torchvision's or of CIFAR's ResNets."""

    type: str
    """basic or bottleneck."""
    in_channels: int
    width: int
    """Channels between its convolutions; a basic block's are its out_channels."""
    out_channels: int
    stride: int
    norm: str = "batch"
    shortcut: str = "identity"
    """identity, conv (1 x 1 and norm), pad (zeros as new channels) or none (no skip)."""
    groups: int = 1

    @classmethod
    def of(cls, module: nn.Module) -> Block | None:
        from torch import nn
        from torchvision.models.resnet import BasicBlock, Bottleneck

        from layergraft.hosts.resnet_blocks import PadShortcut, PlainBasicBlock, PlainBottleneck

        if not isinstance(module, (BasicBlock, Bottleneck)):
            return None
        which, last = ("bottleneck", module.conv3) if isinstance(module, Bottleneck) else ("basic", module.conv2)
        shortcut = "identity"
        if isinstance(module, (PlainBasicBlock, PlainBottleneck)):
            shortcut = "none"
        elif module.downsample is not None:
            shortcut = "pad" if isinstance(module.downsample, PadShortcut) else "conv"
        first, second = module.conv1, module.conv2
        if not all(isinstance(conv, nn.Conv2d) for conv in (first, second, last)):
            return None  # surgery has put something else into it
        channels = first.in_channels, first.out_channels, last.out_channels
        return cls(which, *channels, module.stride, norm_name(module.bn1), shortcut, second.groups)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], stride: int, slot: Slot) -> Block | None:
        """Stride, and whether there is a skip at all, are the site's."""
        if not {"conv1.weight", "conv2.weight"} <= tensors.keys():
            return None
        first, second = tensors["conv1.weight"].shape, tensors["conv2.weight"].shape
        which, last = ("bottleneck", tensors["conv3.weight"].shape) if "conv3.weight" in tensors else ("basic", second)
        ins, width, outs = first[1], first[0], last[0]
        own = slot.layer.blocks[0] if isinstance(slot.layer, Stage) else slot.layer
        if "downsample.0.weight" in tensors:
            shortcut = "conv"
        elif isinstance(own, Block) and own.shortcut == "none":
            shortcut = "none"  # a file cannot tell: as the host has it
        else:
            shortcut = "identity" if (ins, stride) == (outs, 1) else "pad"
        groups = max(1, width // max(1, second[1]))
        return cls(which, ins, width, outs, stride, slot.read_norm("bn1", tensors), shortcut, groups)

    def build(self) -> nn.Module:
        from layergraft.hosts.resnet_blocks import BLOCKS, NORM_LAYERS, PadShortcut, conv_shortcut, initialise

        block = BLOCKS[self.type, self.shortcut != "none"]
        shortcut: nn.Module | None = None
        if self.shortcut == "conv":
            shortcut = conv_shortcut(self.in_channels, self.out_channels, self.stride, self.norm)
        elif self.shortcut == "pad":
            shortcut = PadShortcut(self.stride, self.out_channels - self.in_channels)
        planes = self.out_channels // block.expansion
        # torchvision has int(planes * (base_width / 64)) * groups channels inside; the half keeps int() from rounding down
        per_group = (self.width // self.groups + 0.5) * 64 / planes if self.type == "bottleneck" else 64
        norm = NORM_LAYERS[self.norm]
        built: nn.Module = block(self.in_channels, planes, self.stride, shortcut, self.groups, per_group, 1, norm)
        initialise(built)
        return built

    def shape(self) -> str:
        inside = f" of inner width {self.width}" if self.type == "bottleneck" else ""
        return f"{self.type} block{inside}, {self.norm} norm, skip: {self.shortcut}"

    def resized(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> Block:
        ins, outs, is_basic = in_channels, out_channels, self.type == "basic"
        same = "a block whose skip is the identity keeps its channels: it cannot take and give different numbers"
        require(shortcut != "identity" or ins == outs, same)
        require(is_basic or outs % 4 == 0, f"a bottleneck gives a multiple of 4 channels, not {outs}")
        width = outs if is_basic else max(1, math.ceil(self.width * outs / self.out_channels))
        return replace(self, in_channels=ins, width=width, out_channels=outs, stride=stride, shortcut=shortcut)


class ResNetFamily(Family):
    """torchvision's names: conv1 and bn1, then layer1 to layer4, then fc."""

    def norm_beside(self, conv: str) -> str | None:
        beside = re.sub(r"conv(\d*)$", r"bn\1", conv)
        return super().norm_beside(conv) if beside == conv else beside

    def own_names(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The classifier is called `linear` in the public CIFAR-10 ResNets (Idelbayev, pytorch_resnet_cifar10)."""
        if any(name.startswith("fc.") for name in tensors):
            return tensors
        return {re.sub(r"^linear\.", "fc.", name): tensor for name, tensor in tensors.items()}

    def require_same_kind(self, where: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
        """In channels, width, stem and norm."""
        if "conv1.weight" not in tensors or tensors["conv1.weight"].ndim != 4:
            return
        (width, channels, size, _), ours = tensors["conv1.weight"].shape, wanted["conv1.weight"].shape
        stem = "imagenet" if size == 7 else "small"
        norm, our_norm = ("batch" if "bn1.running_mean" in state else "group" for state in (tensors, wanted))
        advice = f"host.in_channels={channels} repeats or averages the images' channels"
        wrong = {
            f"takes images of {channels} channels and is given {ours[1]}; {advice}": channels != ours[1],
            f"is of a network of width {width}, the host's is {ours[0]}; host.width={width}": width != ours[0],
            f"has a stem of {size} x {size}, the host one of {ours[2]} x {ours[2]}; host.stem={stem}": size != ours[2],
            f"is of a network with {norm} norm; host.norm={norm}": norm != our_norm,
        }
        for what, differs in wrong.items():
            require(not differs, f"{where} {what}")


RESNET = register_family(ResNetFamily(DEFAULT_FAMILY, Block, stem=("conv1", "bn1"), head=("fc",), skip="downsample"))


@dataclass
class ResNetSpec(HostSpec):
    """What the ResNets have in common."""

    width: int = bounded(MISSING, "[1, inf)")
    """Channels of the stem; what multiplies the width of all that follows. Kinds give the network's own."""
    norm: str = one_of("batch", ("batch", "group"))
    """batch, or group: groups of 16 channels."""
    skips: bool = True
    """Whether blocks have their residual skips; false: a plain network of the same layers."""

    family = RESNET


@register("host", "cifar_resnet")
@dataclass
class CifarResNet(ResNetSpec):
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
class TorchvisionResNet(ResNetSpec):
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

    def input_size(self) -> int | None:
        from layergraft.hosts.weights import transforms

        known = transforms(self)
        return None if known is None else int(known.crop_size[0])

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
