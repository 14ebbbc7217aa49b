"""torchvision's residual networks of basic blocks, at any width, with the ImageNet stem or one for small images.

Source: He et al., Deep Residual Learning for Image Recognition, 2016; torchvision/models/resnet.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layergraft.errors import unknown
from layergraft.seeds import stream
from layergraft.specs import HostSpec, register, require

if TYPE_CHECKING:
    from torch import nn

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
STEMS = ("imagenet", "small")


@register("host", "torchvision_resnet")
@dataclass
class TorchvisionResNet(HostSpec):
    """At width 64 with the ImageNet stem and 3 channels, the network is torchvision's own, tensor by tensor."""

    width: int = 64
    """Channels of the stem and of layer1; the later stages have 2, 4 and 8 times as many."""
    stem: str = "imagenet"
    """imagenet: 7 x 7 convolution of stride 2 and max pooling; small: 3 x 3 of stride 1 without, for images under 64 pixels."""

    def check(self, at: str) -> None:
        if self.name not in BLOCKS:
            raise unknown("torchvision_resnet host", self.name, BLOCKS)
        if self.stem not in STEMS:
            raise unknown(f"{at}.stem", self.stem, STEMS)
        require(self.width > 0, f"{at}.width is {self.width}; it must be 1 or more")

    # Facts about the network that strategies refer to by role: role -> module paths.
    roles = {"stem": ["conv1", "bn1"], "head": ["fc"]}

    def build(self, in_channels: int, num_classes: int, seed: int) -> nn.Module:
        """The network on the CPU, initialised as torchvision does, from two streams of `seed`: trunk and head.

        It takes `x_NCHW` float with `in_channels` channels and gives logits (N, `num_classes`).
        """
        import torch

        from layergraft.hosts.narrow_resnet import NarrowResNet

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(seed, "host"))
            network = NarrowResNet(BLOCKS[self.name], self.width, self.stem == "small", in_channels, num_classes)
            torch.manual_seed(stream(seed, "head"))
            network.fc.reset_parameters()
        return network
