"""The donor takes the place of the site's own layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layergraft.config.registry import register
from layergraft.hosts.layer_architectures import Stem
from layergraft.hosts.sites import Site
from layergraft.surgery.operation import Chain, Operation, Placed

if TYPE_CHECKING:
    from torch import nn


@register("surgery", "replace")
@dataclass
class Replace(Operation):
    """The layer that was there is gone. A stem takes the places of a convolution and of the norm after it."""

    name: str = "replace"

    def norm_after(self, site: Site) -> str | None:
        return site.norm

    def place(self, network: nn.Module, site: Site, chain: Chain) -> Placed:
        if isinstance(chain.architecture, Stem) and site.norm is not None and "after" not in chain.parts:
            return _place_stem(network, site.path, site.norm, chain)
        network.set_submodule(site.path, chain.module())
        return Placed(f"{site.path} makes room for the donor", site.path, (site.path,))


def _place_stem(network: nn.Module, path: str, norm_path: str, chain: Chain) -> Placed:
    """Put the stem's convolution and norm where the host's were; the ReLU after them stays the host's."""
    from layergraft.surgery.graft_modules import row

    conv, norm = (chain.parts["donor"].get_submodule(name) for name in ("conv", "norm"))
    pad, affine = chain.parts.get("pad"), chain.parts.get("affine")
    network.set_submodule(path, conv if pad is None else row(pad=pad, donor=conv))
    network.set_submodule(norm_path, norm if affine is None else row(norm=norm, affine=affine))
    did = f"{path} and {norm_path} make room for the stem's convolution and norm"
    return Placed(did, norm_path, (path, norm_path))
