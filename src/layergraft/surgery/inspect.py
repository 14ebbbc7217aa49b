"""What a surgery does before any training: activations at the site and downstream, and the loss, before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layergraft.hosts.sites import BLOCK, STAGE, Site
from layergraft.surgery.calibrate import BATCH, measuring
from layergraft.surgery.operations import Grafted


@dataclass
class Statistics:
    """Of all values that a module gives."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    zeros: int = 0

    def add(self, x: Tensor) -> None:
        self.count += x.numel()
        self.total += x.sum(dtype=torch.float64).item()
        self.squares += x.square().sum(dtype=torch.float64).item()
        self.zeros += int((x == 0).sum())

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def deviation(self) -> float:
        return math.sqrt(max(0.0, self.squares / self.count - self.mean**2))

    @property
    def share_zero(self) -> float:
        return self.zeros / self.count


@dataclass
class StepZero:
    """One network before it is trained, run as `calibrate.measuring` has it."""

    activations: dict[str, Statistics] = field(default_factory=dict)
    """Module path -> statistics of what it gives."""
    loss: float = 0.0
    accuracy: float = 0.0
    """Percent."""


def watched(sites: dict[str, Site], grafted: Grafted, head: Sequence[str]) -> list[str]:
    """The paths to look at: each site, the norm and the block that it is in, the stages from there on, the head."""
    order = list(sites)
    chosen = set(head)
    first = min(order.index(graft.site.path) for graft in grafted.grafts)
    for graft in grafted.grafts:
        chosen |= {graft.site.path, *graft.replaced, *([graft.site.norm] if graft.site.norm else [])}
        chosen |= {
            path for path, site in sites.items() if site.kind == BLOCK and graft.site.path.startswith(path + ".")
        }
    last = {
        path: max(index for index, other in enumerate(order) if other == path or other.startswith(path + "."))
        for path in order
    }
    chosen |= {path for path, site in sites.items() if site.kind == STAGE and last[path] >= first}
    return [path for path, _ in grafted.host.named_modules() if path in chosen]


def step_zero(network: nn.Module, paths: Sequence[str], x_NCHW: Tensor, y_N: Tensor) -> StepZero:
    """Run `network` on these images and look at what the modules at `paths` give."""
    result = StepZero({path: Statistics() for path in paths})

    def record(path: str):
        return lambda module, args, output: result.activations[path].add(output)

    handles = [network.get_submodule(path).register_forward_hook(record(path)) for path in paths]
    correct = 0
    with measuring(network), torch.no_grad():
        for x, y in zip(x_NCHW.split(BATCH), y_N.split(BATCH), strict=True):
            logits = network(x)
            result.loss += F.cross_entropy(logits, y, reduction="sum").item() / len(y_N)
            correct += int((logits.argmax(1) == y).sum())
    result.accuracy = 100 * correct / len(y_N)
    for handle in handles:
        handle.remove()
    return result
