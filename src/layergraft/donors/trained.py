"""The donor proper: one functional layer, trained on a task of its own.

The network that trains it has a single functional layer: (average pooling of the image to the size of the site's maps, where
`resolution` is site) - (a 3 x 3 convolution that lifts the image to the layer's
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

from layergraft.config.data_schema import DataSpec
from layergraft.config.registry import bounded, one_of, register
from layergraft.config.training_schema import OptimSpec, ScheduleSpec
from layergraft.donors.controls import LearnedDonor
from layergraft.donors.donor_kind import identity, key_of
from layergraft.donors.random import initial
from layergraft.errors import UserError, require
from layergraft.hosts.families import BlockArchitecture
from layergraft.hosts.layer_architectures import Architecture, Conv, Slot, Stage, Stem, describe
from layergraft.networks import network_cache
from layergraft.seeds import derive_seed

if TYPE_CHECKING:
    from torch import nn

    from layergraft.data.image_data import ImageData
    from layergraft.donors.donor_cache import Donor
    from layergraft.training.backend import Backend

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
    aux_depth: int = bounded(2, "[1, inf)")
    """Depth of the auxiliary head: k - 1 convolutions, then the classifier."""
    in_channels: int | None = bounded(None, "[1, inf)")
    """null: as many as the site takes."""
    out_channels: int | None = bounded(None, "[1, inf)")
    """null: as many as the site gives."""
    kernel_size: int | None = bounded(None, "[1, inf)")
    """Of a convolution or a stem; a block's are 3."""
    stride: int | None = bounded(None, "[1, inf)")
    """null: the site's."""
    padding: int | None = bounded(None, "[0, inf)")
    """null: such that images keep the size that the site gives them."""
    bias: bool = False
    """Of a convolution or a stem's; surgery.bias says what becomes of it."""
    resolution: str = one_of("image", ("image", "site"))
    """image: it learns on the images as they are; site: on images average-pooled to the size of the maps that the site takes, where
    they are larger."""

    def architecture(self, slot: Slot) -> Architecture:
        """Raises UserError for a stage, which is not one functional layer."""
        kind = self.kind or slot.layer.kind
        if kind == Stage.kind:
            instead = "donor.kind=block or conv puts one in its place"
            raise UserError(f"{slot.path} is a stage, and donor={self.name} trains a single layer; {instead}")
        if kind == BlockArchitecture.kind:
            for name in ("kernel_size", "padding"):
                require(getattr(self, name) is None, f"donor.{name} is set, but a block's convolutions have their own")
            require(not self.bias, "donor.bias is set, but a block's convolutions have none")
            return slot.block(self.in_channels, self.out_channels, self.stride)
        conv = slot.conv(self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.bias)
        return conv if kind == Conv.kind else Stem(conv, slot.norm)

    def source(self) -> str:
        return self.data.name

    def images(self, slot: Slot) -> ImageData:
        """As they are where it names channels of its own."""
        return cast("ImageData", super().images(slot)) if self.in_channels is None else self.loaded()

    def decides(self, slot: Slot) -> dict[str, Any]:
        images, fields = self.images(slot), super().decides(slot)
        pooled = self.pooled_to(images, slot)
        _require_trained_on(self.architecture(slot), self.aux_depth, images.shape, images.num_classes, pooled)
        for name in ("kind", "in_channels", "out_channels", "kernel_size", "stride", "padding", "bias", "resolution"):
            del fields[name]  # resolved in the form and in what images are pooled to
        return fields if pooled is None else {**fields, "pooled_to": list(pooled)}

    def pooled_to(self, images: ImageData, slot: Slot) -> tuple[int, int] | None:
        """Height and width of what images are pooled to before they are learned from; None where they are not."""
        if self.resolution == "image":
            return None
        own, (height, width) = images.shape[1:], slot.maps or slot.image[1:]
        pooled = min(own[0], height), min(own[1], width)
        return None if pooled == own else pooled

    def build(self, slot: Slot, backend: Backend, outputs: Path) -> tuple[nn.Module, dict[str, Any]]:
        return self._trained(slot, backend, outputs)[1:]

    def saw(self, slot: Slot, donor: Donor, backend: Backend, outputs: Path) -> tuple[nn.Module, nn.Module]:
        return self._trained(slot, backend, outputs)[:2]

    def _trained(self, slot: Slot, backend: Backend, outputs: Path) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
        """The single-layer network after its training, its layer, and what is known of it."""
        images, key, known = self.images(slot), key_of(self, slot, backend), identity(self, slot, backend)
        pooled = self.pooled_to(images, slot)
        network, layer = self.network(self.architecture(slot), images.channels, images.num_classes, pooled)
        return (
            network,
            layer,
            network_cache.trained(network, self, images, network_cache.folder_of(outputs, key), known, backend),
        )

    def network(
        self, architecture: Architecture, image_channels: int, num_classes: int, pooled: tuple[int, int] | None = None
    ) -> tuple[nn.Module, nn.Module]:
        """The single-layer network, and its layer: (N, `image_channels`, H, W) to logits (N, `num_classes`). Images are average-pooled
        to the height and width `pooled` first; None: they are not."""
        import torch
        from torch import nn

        def conv_bn_relu(channels: int, width: int) -> list[nn.Module]:
            return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

        layer = initial(architecture, self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, "donor", "rest"))
            lifted = architecture.in_channels != image_channels or isinstance(architecture, BlockArchitecture)
            body: list[nn.Module] = [] if pooled is None else [nn.AdaptiveAvgPool2d(pooled)]
            body += [*(conv_bn_relu(image_channels, architecture.in_channels) if lifted else []), layer]
            if isinstance(architecture, Conv):
                body += [nn.BatchNorm2d(architecture.out_channels), nn.ReLU()]
            width = architecture.out_channels
            for _ in range(self.aux_depth - 1):
                body += conv_bn_relu(width, HEAD_WIDTH)
                width = HEAD_WIDTH
            head = [nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(4 * width, num_classes)]
            return nn.Sequential(*body, *head), layer


@lru_cache(maxsize=256)
def _require_trained_on(
    architecture: Architecture,
    aux_depth: int,
    image: tuple[int, int, int],
    num_classes: int,
    pooled: tuple[int, int] | None,
) -> None:
    """Raise UserError where the single-layer network cannot take such images."""
    import torch

    from layergraft.hosts.resnet_blocks import on_meta, require_room

    network = on_meta(lambda: TrainedDonor(aux_depth=aux_depth).network(architecture, image[0], num_classes, pooled)[0])
    require_room("the donor's own network", network)
    try:
        network(torch.empty(2, *image, device="meta"))
    except RuntimeError as error:
        height, width = pooled or image[1:]
        of = "images" if pooled is None else "images pooled (donor.resolution=site) to maps"
        why = f"{of} of {height} x {width} pixels: {str(error).splitlines()[0]}"
        raise UserError(f"donor: a {describe(architecture)} cannot be trained on {why}") from None
