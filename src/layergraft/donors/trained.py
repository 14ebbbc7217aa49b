"""The donor proper: one convolution, trained on a task of its own.

The network that trains it has a single functional layer: (a 3 x 3 convolution that lifts the image to the layer's
input channels, where it takes more than the image has) - the layer - batch norm - ReLU - an auxiliary head. The
head is the one of greedy layerwise training: k - 1 times [3 x 3 convolution, batch norm, ReLU], average pooling to
2 x 2, a linear classifier.
Source: Belilovsky, Eickenberg, Oyallon, Greedy Layerwise Learning Can Scale to ImageNet, 2019, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layergraft.donors.geometry import Geometry
from layergraft.donors.random import initial
from layergraft.seeds import stream
from layergraft.specs import MISSING, DataSpec, DonorSpec, OptimSpec, ScheduleSpec, register, require

if TYPE_CHECKING:
    from torch import nn

HEAD_WIDTH = 32  # channels of the auxiliary head's convolutions


@register("donor", "trained")
@dataclass
class TrainedDonor(DonorSpec):
    """What is left null is taken from the site, so that the donor fits it."""

    name: str = "trained"
    data: DataSpec = MISSING
    """The source task."""
    optim: OptimSpec = field(default_factory=OptimSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    seed: int = 0
    """Of its weights and its training; conf/donor/trained.yaml makes it the run's seed."""
    k: int = 2
    """Depth of the auxiliary head: k - 1 convolutions, then the classifier."""
    in_channels: int | None = None
    out_channels: int | None = None
    kernel_size: int | None = None
    stride: int | None = None
    padding: int | None = None
    bias: bool = False

    def check(self, at: str) -> None:
        for name in ("k", "in_channels", "out_channels", "kernel_size", "stride"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{at}.{name} is {value}; it must be 1 or more")
        require(self.padding is None or self.padding >= 0, f"{at}.padding is {self.padding}; it must be 0 or more")

    def geometry(self, site: Geometry) -> Geometry:
        def chosen(name: str) -> int:
            own = getattr(self, name)
            return getattr(site, name) if own is None else own

        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
        return Geometry(**{name: chosen(name) for name in names}, bias=self.bias)

    def network(self, geometry: Geometry, image_channels: int, num_classes: int) -> tuple[nn.Module, nn.Conv2d]:
        """The single-layer network, and its layer: (N, `image_channels`, H, W) to logits (N, `num_classes`)."""
        import torch
        from torch import nn

        def conv_bn_relu(channels: int, width: int) -> list[nn.Module]:
            return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

        layer = initial(geometry, self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(self.seed, "donor", "rest"))
            lift = []
            if geometry.in_channels != image_channels:
                lift = conv_bn_relu(image_channels, geometry.in_channels)
            body = [layer, nn.BatchNorm2d(geometry.out_channels), nn.ReLU()]
            width = geometry.out_channels
            for _ in range(self.k - 1):
                body += conv_bn_relu(width, HEAD_WIDTH)
                width = HEAD_WIDTH
            head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes)]
            return nn.Sequential(*lift, *body, *head), layer
