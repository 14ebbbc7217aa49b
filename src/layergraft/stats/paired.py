"""Paired comparison at few seeds.

Two arms with the same seed share host, data and order, so the figure of interest is the mean of the differences
seed by seed. Its interval is Student's t on those differences: at 3 to 5 seeds a percentile bootstrap covers far
less than it says, a t interval covers what it says where the differences are near normal (benchmarks/coverage.py
compares them with the bootstrap-t and with noise pooled over cells). Nothing is drawn: the same runs have the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats


@dataclass(frozen=True)
class Difference:
    """A mean paired difference, in the units of the metric, with its interval."""

    mean: float
    half_width: float
    """Of the interval; infinite where n is 1, or where every pair has the same difference, but 0."""
    n: int
    """Pairs."""
    p: float
    """Two-sided, of the hypothesis that the mean is 0; 1 where the pairs show no spread."""
    detectable: float
    """The true difference that this n and this spread would detect 4 times in 5 at the 5% level."""

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        mean = self.in_digits(self.mean, "+")
        if math.isinf(self.half_width):
            return f"{mean} (n = {self.n})"
        return f"{mean} ± {self.in_digits(self.half_width)}"

    def in_digits(self, value: float, sign: str = "") -> str:
        """`value` with as many decimals as the interval's first digit has, one at least."""
        known = self.half_width if 0 < self.half_width < math.inf else abs(self.mean) or 1.0
        return f"{value:{sign}.{min(6, max(1, -math.floor(math.log10(known))))}f}"


def difference(values: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95) -> Difference | None:
    """`values` less `baseline`, each by seed, paired over the seeds that both have; None where they share none."""
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    return mean_difference([values[seed] - baseline[seed] for seed in seeds], level)


def mean_difference(deltas: Sequence[float], level: float = 0.95, inflation: float = 1.0) -> Difference:
    """The mean of `deltas`, one a seed, with Student's interval; its standard error is taken `inflation` times."""
    sample, n = np.asarray(deltas, float), len(deltas)
    if n == 1:
        return Difference(float(sample[0]), math.inf, 1, 1.0, math.inf)
    mean, spread = float(sample.mean()), float(sample.std(ddof=1))
    if spread < 1e-9 * max(1.0, abs(mean)):  # the same difference each time: these pairs tell nothing of the spread
        return Difference(mean, 0.0 if mean == 0 else math.inf, n, 1.0, math.inf)
    error = inflation * spread / math.sqrt(n)
    p = float(2 * special.stdtr(n - 1, -abs(mean) / error))
    return Difference(mean, _quantile(n, level) * error, n, p, _noncentrality(n) * error)


@lru_cache
def _quantile(n: int, level: float) -> float:
    return float(stats.t.ppf((1 + level) / 2, n - 1))


@lru_cache
def _noncentrality(n: int, level: float = 0.95, power: float = 0.8) -> float:
    """The true mean, in standard errors, that a two-sided t test of n pairs finds with this power.

    The noncentral t as a mixture of normals over the spread that a sample may show; scipy's own fails for small n.
    """
    quantile = stats.t.ppf((1 + level) / 2, n - 1)
    threshold = quantile * np.sqrt(stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, n - 1) / (n - 1))

    def missing(shift: float) -> float:
        return float(np.mean(stats.norm.sf(threshold - shift) + stats.norm.cdf(-threshold - shift)) - power)

    return float(optimize.brentq(missing, 0, 2 * quantile + 4))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p values that hold for the whole family of contrasts (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected.tolist()
