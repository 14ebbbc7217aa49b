"""The donor stands beside the site's own layer, and their outputs are added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layergraft.config.registry import bounded, register
from layergraft.hosts.sites import Site
from layergraft.surgery.operation import Chain, Operation, Placed, behind_gate

if TYPE_CHECKING:
    from torch import nn


@register("surgery", "parallel")
@dataclass
class Parallel(Operation):
    """A branch that takes what the site's own layer takes."""

    name: str = "parallel"
    gate: float | None = bounded(None, "(-inf, inf)", "it must be a finite number")
    """Where the gate of the donor's branch starts: host(x) + gate * donor(x). null: no gate, the branch is added as it is."""

    def place(self, network: nn.Module, site: Site, chain: Chain) -> Placed:
        from layergraft.surgery.graft_modules import GatedSum

        path = site.path
        network.set_submodule(path, GatedSum(network.get_submodule(path), chain.module(), self.gate))
        did = f"the donor stands beside {path}{behind_gate(self.gate)}"
        gates = () if self.gate is None else (f"{path}.gate",)
        return Placed(did, f"{path}.donor", (path,), {path: f"{path}.host"}, gates)
