"""Seeds until a difference is as precise as asked: how many to add, by the width of its interval.

The rule looks at the spread of the differences alone, never at their mean or at p. But it stops sooner where the spread came out
small by chance, so that where it stops a plain t interval is too narrow: of normal differences and from 3 seeds on it covers as
few as 90 in 100. So the rule and the report take the standard error `widening(n)` times, with which it covers 94.6
or more where differences are near normal or have heavy tails (benchmarks/precision.py, which has the alternatives too: Stein's two
stages (1945), more seeds to start with, seeds more to confirm). Where differences are very skewed it covers less, as at a fixed n.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from layergraft.stats.paired_differences import Difference


def widening(n: int) -> float:
    """The factor on the standard error of a mean over n seeds where the width of its interval decided on n."""
    return 1 + 2 / n


def seeds_to_add(found: Difference, half_width: float, num_max: int) -> int:
    """How many seeds to add before looking again. 0 where the interval of `found`, widened, reaches no farther than `half_width` to
    either side, and where there are `num_max` seeds.

    As many as the spread so far asks for, at most as many as there are. One seed, or seeds that agree to the last image, tell
    nothing of the spread: then it is one.
    """
    n, room = found.n, num_max - found.n
    spread = found.error * math.sqrt(n)
    if room <= 0 or _unit_half_width(n) * spread <= half_width:
        return 0
    most = min(room, n) if math.isfinite(spread) else 1
    return next((more for more in range(1, most) if _unit_half_width(n + more) * spread <= half_width), most)


def widened(found: Difference) -> Difference:
    """`found` with the interval that it has where the rule decided on its n."""
    return replace(found, error=widening(found.n) * found.error)


@lru_cache
def _unit_half_width(n: int) -> float:
    """The half-width of the widened interval of a mean over n seeds whose differences have a standard deviation of 1."""
    return Difference(0.0, widening(n) / math.sqrt(n), n).half_width if n > 1 else math.inf
