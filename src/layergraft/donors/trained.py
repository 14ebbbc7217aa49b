"""The donor proper: one functional layer, trained on a task of its own.

The network that trains it has a single functional layer: (a 3 x 3 convolution that lifts the image to the layer's
input channels, where it takes more than the image has) - the layer - an auxiliary head. A convolution is followed by
batch norm and ReLU there; a residual block always stands on a lifting stem, so that stem, block and head are a ResNet
of one block. The head is the one of greedy layerwise training: k - 1 times [3 x 3 convolution, batch norm, ReLU],
average pooling to 2 x 2, batch norm, a linear classifier.
Source: Belilovsky, Eickenberg, Oyallon, Greedy Layerwise Learning Can Scale to ImageNet, 2019, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import MISSING

from layergraft.config.recipes import OptimSpec, ScheduleSpec
from layergraft.config.registry import limited, register
from layergraft.config.specs import DataSpec
from layergraft.donors.base import identity, key_of
from layergraft.donors.controls import LearnedDonor
from layergraft.donors.forms import Block, Conv, Form, Place, Stage, Stem, describe
from layergraft.donors.random import initial
from layergraft.errors import UserError, require
from layergraft.networks import kept
from layergraft.seeds import stream

if TYPE_CHECKING:
    from torch import nn

    from layergraft.data.images import ImageData
    from layergraft.donors.cache import Donor
    from layergraft.training.fit import Backend

HEAD_WIDTH = 32  # channels of the auxiliary head's convolutions


@register("donor", "trained")
@dataclass
class TrainedDonor(LearnedDonor):
    """What is left null is taken from the site, so that the donor fits it."""

    name: str = "trained"
    data: DataSpec = MISSING
    """The source task."""
    optim: OptimSpec = field(default_factory=OptimSpec)
    """Of its own training."""
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    """Likewise."""
    k: int = limited(2, "[1, inf)")
    """Depth of the auxiliary head: k - 1 convolutions, then the classifier."""
    in_channels: int | None = limited(None, "[1, inf)")
    """null: as many as the site takes."""
    out_channels: int | None = limited(None, "[1, inf)")
    """null: as many as the site gives."""
    kernel_size: int | None = limited(None, "[1, inf)")
    """Of a convolution or a stem; a block's are 3."""
    stride: int | None = limited(None, "[1, inf)")
    """null: the site's."""
    padding: int | None = limited(None, "[0, inf)")
    """null: such that images keep the size that the site gives them."""
    bias: bool = False
    """Of a convolution or a stem's; surgery.bias says what becomes of it."""

    def form(self, place: Place) -> Form:
        """Raises UserError for a stage, which is not one functional layer."""
        kind = self.kind or place.site.kind
        if kind == Stage.kind:
            instead = "donor.kind=block or conv puts one in its place"
            raise UserError(f"{place.path} is a stage, and donor={self.name} trains a single layer; {instead}")
        if kind == Block.kind:
            for name in ("kernel_size", "padding"):
                require(getattr(self, name) is None, f"donor.{name} is set, but a block's convolutions have their own")
            require(not self.bias, "donor.bias is set, but a block's convolutions have none")
            return place.block(self.in_channels, self.out_channels, self.stride)
        conv = place.conv(self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.bias)
        return conv if kind == Conv.kind else Stem(conv, place.norm)

    def source(self) -> str:
        return self.data.name

    def images(self, place: Place) -> ImageData:
        """As they are where it names channels of its own."""
        return cast("ImageData", super().images(place)) if self.in_channels is None else self.loaded()

    def decides(self, place: Place) -> dict[str, Any]:
        images, fields = self.images(place), super().decides(place)
        _require_trained_on(self.form(place), self.k, images.shape, images.num_classes)
        for name in ("kind", "in_channels", "out_channels", "kernel_size", "stride", "padding", "bias"):
            del fields[name]  # resolved in the form
        return fields

    def build(self, place: Place, backend: Backend, outputs: Path) -> tuple[nn.Module, dict[str, Any]]:
        return self._trained(place, backend, outputs)[1:]

    def saw(self, place: Place, donor: Donor, backend: Backend, outputs: Path) -> tuple[nn.Module, nn.Module]:
        return self._trained(place, backend, outputs)[:2]

    def _trained(self, place: Place, backend: Backend, outputs: Path) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
        """The single-layer network after its training, its layer, and what is known of it."""
        images, key, known = self.images(place), key_of(self, place, backend), identity(self, place, backend)
        network, layer = self.network(self.form(place), images.channels, images.num_classes)
        return network, layer, kept.trained(network, self, images, kept.folder_of(outputs, key), known, backend)

    def network(self, form: Form, image_channels: int, num_classes: int) -> tuple[nn.Module, nn.Module]:
        """The single-layer network, and its layer: (N, `image_channels`, H, W) to logits (N, `num_classes`)."""
        import torch
        from torch import nn

        def conv_bn_relu(channels: int, width: int) -> list[nn.Module]:
            return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

        layer = initial(form, self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream(self.seed, "donor", "rest"))
            lifted = form.in_channels != image_channels or isinstance(form, Block)
            body = [*(conv_bn_relu(image_channels, form.in_channels) if lifted else []), layer]
            if isinstance(form, Conv):
                body += [nn.BatchNorm2d(form.out_channels), nn.ReLU()]
            width = form.out_channels
            for _ in range(self.k - 1):
                body += conv_bn_relu(width, HEAD_WIDTH)
                width = HEAD_WIDTH
            head = [nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(4 * width, num_classes)]
            return nn.Sequential(*body, *head), layer


@lru_cache(maxsize=256)
def _require_trained_on(form: Form, k: int, image: tuple[int, int, int], num_classes: int) -> None:
    """Raise UserError where the single-layer network cannot take such images."""
    import torch

    from layergraft.hosts.blocks import blank, require_room

    network = blank(lambda: TrainedDonor(k=k).network(form, image[0], num_classes)[0])
    require_room("the donor's own network", network)
    try:
        network(torch.empty(2, *image, device="meta"))
    except RuntimeError as error:
        why = f"images of {image[1]} x {image[2]} pixels: {str(error).splitlines()[0]}"
        raise UserError(f"donor: a {describe(form)} cannot be trained on {why}") from None
