"""No donor: the host as it is, the control without a graft."""

from __future__ import annotations

from dataclasses import dataclass

from layergraft.config.registry import register
from layergraft.config.schema import DonorSpec


@register("donor", "none")
@dataclass
class NoDonor(DonorSpec):
    """The site does not matter then, and is not part of the run's key."""

    name: str = "none"
    is_layer = False
