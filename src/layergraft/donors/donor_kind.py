"""What every kind of donor says of itself: its form at a site, what decides its weights, how it is made, how it saw its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layergraft.config.data_schema import DataSpec
from layergraft.config.registry import canonical
from layergraft.config.schema import RESULT_VERSION, DonorSpec
from layergraft.config.training_schema import OptimSpec, ScheduleSpec
from layergraft.data.overlap import Learned
from layergraft.hosts.layer_architectures import Architecture, Slot, to_json
from layergraft.networks.network_cache import training_images
from layergraft.store.files import digest, label

if TYPE_CHECKING:
    from torch import nn

    from layergraft.data.image_data import ImageData
    from layergraft.data.normalization import Normalization
    from layergraft.donors.donor_cache import Donor
    from layergraft.training.backend import Backend


THE_DONOR = "the donor"


class DonorKind(DonorSpec):
    """A donor that is a layer: all kinds but `none`. A kind says `source` and `architecture`, and `make`s its layer; one that is
    trained says `build`, and one that learns from images in which network it `saw` them."""

    seed: int
    """Of all that is drawn for it."""
    data: DataSpec | None = None
    """The source task; None where it learns from no images."""
    optim: OptimSpec | None = None
    """Of its own training."""
    schedule: ScheduleSpec | None = None
    """Of its own training."""

    def source(self) -> str:
        """Where it comes from, a word for keys and reports."""
        raise NotImplementedError

    def architecture(self, slot: Slot) -> Architecture:
        """What layer it is there. Raises UserError where it is none."""
        raise NotImplementedError

    def make(self, slot: Slot) -> nn.Module:
        """The layer for this place, of a kind that takes nothing from the store."""
        raise NotImplementedError

    def build(self, slot: Slot, backend: Backend, outputs: Path) -> tuple[nn.Module, dict[str, Any]]:
        """The layer, and what else is known of it for its provenance. Raises RunFailed where training it diverges."""
        return self.make(slot), {}

    def decides(self, slot: Slot) -> dict[str, Any]:
        """The keys that decide its weights there, as plain data: files by their content."""
        fields: dict[str, Any] = canonical(self)
        fields["name"] = type(self).__name__  # what a YAML calls it changes nothing
        if self.data is not None and (images := self.images(slot)) is not None:
            fields["data"] = self.data.identity() | images.seeds
        return fields

    def images(self, slot: Slot) -> ImageData | None:
        """The images that it learns from, with the channels of the host's (grey repeated, colours averaged); None where it
        learns from none. Raises UserError where they cannot be had."""
        if self.data is None:
            return None
        images = self.loaded()
        return images.with_channels(slot.image[0]) if 1 in (images.channels, slot.image[0]) else images

    def loaded(self) -> ImageData:
        """The source's images as they are. Raises UserError, which says whose they are, where they cannot be had, its
        optimizer is none, its batches are larger than the training split, or it would be stopped by a metric that the source
        lacks."""
        assert self.data is not None
        return training_images("donor", self.data, self.seed, self.optim, self.schedule)

    def normalization(self, images: ImageData) -> Normalization:
        """That of the images that it learns from."""
        from layergraft.data.normalization import chosen

        assert self.data is not None  # who asks has images
        return chosen(self.data.normalize, images.train, None)

    def learned_from(self, slot: Slot) -> Learned | None:
        """What its weights were learned from; None where that is nothing, or not known, as of a file."""
        images = self.images(slot)
        if self.data is None or images is None:
            return None
        return Learned(THE_DONOR, "donor.data", self.data, self.seed, images)

    def saw(self, slot: Slot, donor: Donor, backend: Backend, outputs: Path) -> tuple[nn.Module, nn.Module] | None:
        """The network that was given `images` when `donor` learned, and what in it was the layer; None where that is not known."""
        return None

    def controlled(self) -> DonorKind:
        """This donor under its control, if it has one (`donors.controls`)."""
        return self


def identity(donor: DonorKind, slot: Slot, backend: Backend) -> dict[str, Any]:
    """All that decides a donor's weights. Raises UserError where it cannot be made."""
    images, fields = donor.images(slot), donor.decides(slot)
    known: dict[str, Any] = {
        "version": RESULT_VERSION,
        "spec": fields,
        "architecture": to_json(donor.architecture(slot)),
    }
    if images is not None:
        known["precision"] = backend.precision
        if "data" in fields:
            known |= {"data": images.fingerprint, "image": list(images.shape)}
    return known


def key_of(donor: DonorKind, slot: Slot, backend: Backend) -> str:
    """The name of a donor's folder: readable, and unique by the hash of all that decides its weights."""
    donor = donor.controlled()
    architecture, known = donor.architecture(slot), identity(donor, slot, backend)
    size = getattr(getattr(architecture, "conv", architecture), "kernel_size", None)
    what = (
        f"{architecture.kind}{f'{size}x{size}' if size else ''}-{architecture.in_channels}-{architecture.out_channels}"
    )
    seed = [f"seed{donor.seed}"] if "seed" in known["spec"] else []
    return label(what, donor.source(), *seed, digest(known))
