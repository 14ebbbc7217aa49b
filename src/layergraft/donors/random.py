"""The random control: the layer that a trained donor of the same seed started from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layergraft.donors.geometry import Geometry
from layergraft.seeds import stream
from layergraft.specs import DonorSpec, register

if TYPE_CHECKING:
    from torch import nn


def initial(geometry: Geometry, seed: int) -> nn.Conv2d:
    """The untrained layer of this shape and seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "donor"))
        return geometry.build()


@register("donor", "random")
@dataclass
class RandomDonor(DonorSpec):
    """Fits every site: it takes the site's shape."""

    name: str = "random"
    seed: int = 0
    """Of its weights; conf/donor/random.yaml makes it the run's seed."""

    def geometry(self, site: Geometry) -> Geometry:
        return site
