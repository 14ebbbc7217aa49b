"""The best of several arms, and what it gains, not inflated by the picking.

Validation and test accuracy of a run share the noise of its training, so the arm that validates best is, in part, the
one that was lucky, and its test accuracy flatters it too. Here each seed's gain is read for the arm that the *other*
seeds would pick. `benchmarks/coverage.py` measures what that mends and what its interval covers.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from layergraft.stats.paired import Difference, mean_difference


@dataclass(frozen=True)
class Picked:
    """The column that validates best over all seeds, and what picking gains over a baseline."""

    column: int
    gain: Difference
    """Mean over seeds of the test difference of the arm that the other seeds pick."""
    agreement: int
    """How many of the seeds' picks are `column`."""


def pick(val_SA: np.ndarray, gain_SA: np.ndarray, level: float = 0.95) -> Picked:
    """The best of A arms by validation, from S seeds: `val_SA` to pick by, `gain_SA` test differences to a baseline.

    With one seed there is nothing to pick it by but itself: the gain is that arm's, and its interval infinite. The standard
    error is taken sqrt(S / (S - 1)) times, since the picks of different seeds rest on the same runs.
    """
    num_seeds = len(val_SA)
    column = int(val_SA.sum(0).argmax())
    if num_seeds == 1:
        return Picked(column, mean_difference(gain_SA[:, column]), 1)
    picks = (val_SA.sum(0) - val_SA).argmax(1)
    gain = mean_difference(gain_SA[np.arange(num_seeds), picks], level, math.sqrt(num_seeds / (num_seeds - 1)))
    return Picked(column, gain, Counter(picks.tolist())[column])
