"""Surgery: how a donor goes into a host. Every operation returns a new network and leaves the host as it was."""

from __future__ import annotations

import copy

from torch import nn

from layergraft.donors.geometry import Geometry
from layergraft.errors import UserError


def replace(host: nn.Module, path: str, donor: nn.Conv2d) -> nn.Module:
    """A copy of `host` with a copy of `donor` in the place of its convolution at `path`.

    The donor must take and give the channels that the site has, with the same kernel, stride and padding; it may
    have a bias where the site has none. Raises UserError where it does not fit.
    """
    site = host.get_submodule(path)
    has, wants = Geometry.of(donor), Geometry.of(site)
    if not has.fits(wants):
        raise UserError(f"the donor does not fit {path}: the donor is {has}; the site takes {wants}")
    grafted = copy.deepcopy(host)
    grafted.set_submodule(path, copy.deepcopy(donor))
    return grafted
