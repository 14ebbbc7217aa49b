"""The best of several candidates at a fraction of the runs of trying each at every seed: successive halving.

Source: Karnin, Koren & Somekh, Almost Optimal Exploration in Multi-Armed Bandits, 2013 (sequential halving). What grows from
rung to rung is the number of seeds, not of epochs: a short run with a schedule of its own prefers another learning rate than the
whole one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rung:
    """So many candidates are known at so many seeds, in all."""

    num_candidates: int
    num_seeds: int


def rungs(num_candidates: int, num_seeds: int) -> list[Rung]:
    """The rungs that `num_candidates` go through: half of them leave at each, and the last rung knows all `num_seeds`.

    `rungs(4, 3)` is 4 candidates at 1 seed, then 2 of them at 3.
    """
    number = max(1, min(math.ceil(math.log2(max(num_candidates, 1))), num_seeds))
    return [Rung(-(-num_candidates // 2**step), num_seeds * (step + 1) // number) for step in range(number)]


def num_runs(ladder: list[Rung]) -> int:
    """How many runs the rungs take, each candidate once a seed."""
    before = [0, *(rung.num_seeds for rung in ladder)]
    return sum(rung.num_candidates * (rung.num_seeds - seeds) for rung, seeds in zip(ladder, before, strict=False))


def ranked(acc_CS: np.ndarray, loss_CS: np.ndarray | None = None) -> list[int]:
    """Candidates, the best first: by mean accuracy over seeds, then by mean loss, then in their order.

    A candidate with a nan (a run that diverged or failed) is last.
    """
    lost_C = np.isnan(acc_CS).any(1)
    acc_C = np.where(lost_C, -np.inf, acc_CS.mean(1).round(9))
    loss_C = np.zeros(len(acc_C)) if loss_CS is None else np.where(np.isnan(loss_CS).any(1), np.inf, loss_CS.mean(1))
    loss_C[lost_C] = np.inf
    return [int(candidate) for candidate in np.lexsort((np.arange(len(acc_C)), loss_C, -acc_C))]
