"""The random control: the layer that a trained donor of the same seed started from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layergraft.config.registry import register
from layergraft.donors.base import DonorKind
from layergraft.donors.forms import Form, Place, Stem
from layergraft.errors import require
from layergraft.seeds import stream

if TYPE_CHECKING:
    from torch import nn


def initial(form: Form, seed: int) -> nn.Module:
    """The untrained layer of this form and seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(seed, "donor"))
        return form.build()


@register("donor", "random")
@dataclass
class RandomDonor(DonorKind):
    """Fits every site: it takes the site's shape."""

    name: str = "random"
    seed: int = 0
    """Of its weights; conf/donor/random.yaml makes it the run's seed."""

    def form(self, place: Place) -> Form:
        """As the site is, where `kind` is None."""
        if self.kind is None:
            return place.site
        if self.kind == "block":
            return place.block()
        return place.conv() if self.kind == "conv" else Stem(place.conv(), place.norm)

    def source(self) -> str:
        return "untrained"

    def make(self, place: Place) -> nn.Module:
        return initial(self.form(place), self.seed)


def require_conv(kind: str | None, name: str) -> None:
    """Raise UserError where a donor that is always a convolution is asked to be something else."""
    require(kind in (None, "conv"), f"donor.kind is {kind}, but donor={name} is always a convolution")
