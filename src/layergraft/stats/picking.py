"""The best of several arms, and what it gains, not inflated by the picking.

Validation and test accuracy of a run share the noise of its training, so the arm that validates best is, in part, the
one that was lucky, and its test accuracy flatters it too. Here each seed's gain is read for the arm that the *other*
seeds would pick. `benchmarks/coverage.py` measures what that mends and what its interval covers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from layergraft.stats.paired import Difference, mean_difference

# The picks of different seeds rest on the same runs, so that the spread of their gains tells too little: without this factor
# on the standard error the interval covers 84 to 95 in 100 (3 to 20 seeds, 2 to 20 arms), with it 93 to 98 at up to 10 seeds.
WIDER = 1.25


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

    With one seed there is nothing to pick it by but itself: the gain is that arm's, and its interval infinite.
    """
    num_seeds = len(val_SA)
    column = int(val_SA.sum(0).argmax())
    if num_seeds == 1:
        return Picked(column, mean_difference(gain_SA[:, column]), 1)
    picks = (val_SA.sum(0) - val_SA).argmax(1)
    wider = WIDER if val_SA.shape[1] > 1 else 1.0
    gain = mean_difference(gain_SA[np.arange(num_seeds), picks], level, wider)
    return Picked(column, gain, Counter(picks.tolist())[column])
