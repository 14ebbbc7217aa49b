"""What every surgery operation says of itself: what a donor has to be at a site, and how it goes into the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from layergraft.config.registry import canonical, name_of, names_of
from layergraft.config.schema import SurgerySpec
from layergraft.errors import require
from layergraft.hosts.layer_architectures import Architecture
from layergraft.hosts.sites import Site

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Chain:
    """What goes in: the donor with its adapters around it."""

    architecture: Architecture
    """The donor's."""
    parts: Mapping[str, nn.Module]
    """In the order in which they act: before, pad, donor, after, affine; all but the donor only where they are needed."""

    def module(self) -> nn.Module:
        """Return the whole chain as one module, which is the donor itself where it stands alone."""
        from layergraft.surgery.graft_modules import row

        return row(**self.parts) if len(self.parts) > 1 else self.parts["donor"]


@dataclass(frozen=True)
class Placed:
    """Where an operation has put a chain, and what has become of the host there. Paths are module paths."""

    did: str
    """One line for people."""
    chain: str
    """The module in the new network whose output is the chain's."""
    replaced: tuple[str, ...]
    """Where something else stands now in the host; the last one's output is where what was done is first felt."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """Of `replaced`, where the host's own layer still is part of the new network: its path there."""
    gates: tuple[str, ...] = ()
    """Parameters that the operation added and that are single numbers; probes record them."""
    added: tuple[str, ...] = ()
    """Other modules with parameters that the operation added."""
    stands_for: Literal["layer", "input", "output"] = "layer"
    """What the chain's output is in the intact host. layer: the output of the layer (`replaced[-1]`), given its input; input,
    output: the site's input or output, which the chain is given and passes on."""


class Operation(SurgerySpec):
    """How a donor goes into a host. A subclass is a dataclass that is registered under `surgery` and says how to `place` a
    donor; importing its module must not import torch."""

    def place(self, network: nn.Module, site: Site, chain: Chain) -> Placed:
        """Put `chain` into `network`, a copy of the host that is changed in place, at `site`."""
        raise NotImplementedError

    def architecture(self, site: Site) -> Architecture:
        """Return what a donor has to be at `site`: by default, what the host has there."""
        return site.architecture

    def takes(self, site: Site) -> tuple[int, int, int]:
        """Return the shape (channels, height, width) of what the donor is given at `site`: by default, what the host's layer is."""
        return site.in_shape

    def norm_after(self, site: Site) -> str | None:
        """Return the module path of the host's norm that takes the chain's output directly; None where there is none."""
        return None

    def decides(self) -> dict[str, Any]:
        """Return the keys that decide a run's numbers, as plain data."""
        fields: dict[str, Any] = canonical(self)
        fields["name"] = name_of(self)  # what a YAML calls it changes nothing
        if self.channel_matching != "project":
            del fields["adapter_init"]
        if self.calibrate == "none" and not self.solves_adapters:
            del fields["images"]
        return fields

    @property
    def solves_adapters(self) -> bool:
        """Whether adapters are initialised by least squares on the host's activations."""
        return self.channel_matching == "project" and self.adapter_init == "least_squares"

    def check(self, at: str) -> None:
        own = name_of(self)
        mistaken = f"{at}.name is {self.name}, but the operation is {own}; surgery={self.name} chooses the other"
        require(self.name == own or self.name not in names_of("surgery"), mistaken)


def behind_gate(gate: float | None) -> str:
    """Return how a line for people ends where there is a gate that starts at `gate`."""
    return "" if gate is None else f", behind a gate that starts at {gate:g}"
