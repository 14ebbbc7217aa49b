"""The random control: the layer that a trained donor of the same seed started from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layergraft.config.registry import register
from layergraft.donors.donor_kind import DonorKind
from layergraft.errors import require
from layergraft.hosts.layer_architectures import Architecture, Slot, Stem
from layergraft.seeds import derive_seed

if TYPE_CHECKING:
    from torch import nn


def initial(architecture: Architecture, seed: int) -> nn.Module:
    """The untrained layer of this form and seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "donor"))
        return architecture.build()


@register("donor", "random")
@dataclass
class RandomDonor(DonorKind):
    """Fits every site: it takes the site's shape."""

    name: str = "random"
    seed: int = 0
    """Of its weights; conf/donor/random.yaml makes it the run's seed."""

    def architecture(self, slot: Slot) -> Architecture:
        """As the site is, where `kind` is None."""
        if self.kind is None:
            return slot.layer
        if self.kind == "block":
            return slot.block()
        return slot.conv() if self.kind == "conv" else Stem(slot.conv(), slot.norm)

    def source(self) -> str:
        return "untrained"

    def make(self, slot: Slot) -> nn.Module:
        return initial(self.architecture(slot), self.seed)


def require_conv(kind: str | None, name: str) -> None:
    """Raise UserError where a donor that is always a convolution is asked to be something else."""
    require(kind in (None, "conv"), f"donor.kind is {kind}, but donor={name} is always a convolution")
