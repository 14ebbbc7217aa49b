"""The donor is a link more in the chain, before or after the site's own layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layergraft.config.registry import bounded, one_of, register
from layergraft.hosts.layer_architectures import Architecture, Conv
from layergraft.hosts.sites import Site
from layergraft.surgery.operation import Chain, Operation, Placed, behind_gate

if TYPE_CHECKING:
    from torch import nn


@register("surgery", "insert")
@dataclass
class Insert(Operation):
    """The site's own layer stays. The donor is a 3 x 3 convolution that keeps the channels, where it does not say otherwise."""

    name: str = "insert"
    position: str = one_of("after", ("before", "after"))
    """before or after the site."""
    gate: float | None = bounded(None, "(-inf, inf)", "it must be a finite number")
    """Where the gate of the donor's branch starts: x + gate * donor(x). null: no gate, a plain link in the chain."""

    def takes(self, site: Site) -> tuple[int, int, int]:
        return site.in_shape if self.position == "before" else site.out_shape

    def architecture(self, site: Site) -> Architecture:
        channels = self.takes(site)[0]
        return Conv(channels, channels, 3, 1, 1)

    def norm_after(self, site: Site) -> str | None:
        return site.norm if self.position == "after" and self.gate is None else None

    def place(self, network: nn.Module, site: Site, chain: Chain) -> Placed:
        from torch import nn

        from layergraft.surgery.graft_modules import GatedSum, row

        path, own, link = site.path, network.get_submodule(site.path), chain.module()
        at = f"{path}.donor"
        gates: tuple[str, ...] = ()
        if self.gate is not None:
            link = GatedSum(nn.Identity(), link, self.gate)
            at, gates = f"{at}.donor", (f"{at}.gate",)
        is_before = self.position == "before"
        network.set_submodule(path, row(donor=link, host=own) if is_before else row(host=own, donor=link))
        did = f"the donor is inserted {self.position} {path}{behind_gate(self.gate)}"
        kept = {path: f"{path}.host"}
        return Placed(did, at, (path,), kept, gates, stands_for="input" if is_before else "output")
