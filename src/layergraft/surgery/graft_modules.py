"""The modules that operations put into networks: plain ones, so that the network compiles, exports, copies and saves like
any other."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn


class GatedSum(nn.Module):
    """`host(x) + gate * donor(x)`, the gate a single learnt number (ReZero, SkipInit); 1 and not learnt for None."""

    def __init__(self, host: nn.Module, donor: nn.Module, gate: float | None) -> None:
        super().__init__()
        self.host, self.donor = host, donor
        self.gate = None if gate is None else nn.Parameter(torch.tensor(float(gate)))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.donor(x)
        return cast(Tensor, self.host(x) + (branch if self.gate is None else self.gate * branch))


def row(**modules: nn.Module) -> nn.Sequential:
    """Return `modules` one after the other, by these names."""
    return nn.Sequential(OrderedDict(modules))
