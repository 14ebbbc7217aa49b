"""The best of several arms, and what it gains, not inflated by the picking.

Validation and test accuracy of a run share the noise of its training, so the arm that validates best is, in part, the
one that was lucky, and its test accuracy flatters it too. Here each seed's gain is read for the arm that the *other*
seeds would pick. `benchmarks/coverage.py` measures what that mends and what its interval covers.
"""

from __future__ import annotations

import numpy as np

from layergraft.stats.paired_differences import Difference, mean_difference


def wider(num_arms: int) -> float:
    """The factor on the standard error: the picks of different seeds rest on the same runs, so that the spread of their gains
    tells too little, the more so the more arms there are and the better validation tells what test will say."""
    return 1.0 if num_arms == 1 else 1.15 + 0.1 * float(np.log2(num_arms))


def pick(val_SA: np.ndarray) -> tuple[int, np.ndarray]:
    """The best of A arms by validation over S seeds, and the arm (S,) that all seeds but one pick, for each that is left out.

    With one seed there is nothing to pick by but itself.
    """
    best = int(val_SA.sum(0).argmax())
    return best, (val_SA.sum(0) - val_SA).argmax(1) if len(val_SA) > 1 else np.array([best])


def gain_of_picking(gain_SA: np.ndarray, picks_S: np.ndarray) -> Difference | None:
    """What picking gains in the mean: each seed's `gain_SA`, a test difference to a baseline, of the arm that the others pick.

    Seeds whose gain is nan do not count; None where none is left.
    """
    gain_S = gain_SA[np.arange(len(picks_S)), picks_S]
    gain_S = gain_S[~np.isnan(gain_S)]
    return mean_difference(gain_S, wider(gain_SA.shape[1])) if len(gain_S) else None
