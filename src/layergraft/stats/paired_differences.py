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

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean paired difference, in the units of the metric."""

    mean: float
    error: float
    """Its standard error; infinite where the pairs tell nothing of the spread: one pair, or the same difference each time."""
    n: int
    """Pairs."""
    family: int = 1
    """How many differences were tested together, this one included."""
    corrected_p: float | None = None
    """Corrected over the family (`together`)."""
    margin: float | None = None
    """The largest difference that counts as none, in either direction; None: equivalence is not tested."""
    corrected_equivalence_p: float | None = None
    """Corrected over those of the family that have a margin (`together`)."""

    @property
    def half_width(self) -> float:
        """Of the 95% interval of this difference alone."""
        return (
            float(special.stdtrit(self.n - 1, (1 + LEVEL) / 2)) * self.error if math.isfinite(self.error) else math.inf
        )

    @property
    def p(self) -> float:
        """Two-sided, of the hypothesis that the mean is 0; 1 where the error is infinite."""
        return float(2 * special.stdtr(self.n - 1, -abs(self.mean) / self.error)) if math.isfinite(self.error) else 1.0

    @property
    def detectable(self) -> float:
        """The minimum detectable difference: what this n and this spread find with 80% power, at the 5% level that
        Bonferroni's correction leaves to one of the family. About that: the spread is itself the sample's."""
        return _noncentrality(self.n, (1 - LEVEL) / self.family) * self.error if math.isfinite(self.error) else math.inf

    @property
    def equivalence_p(self) -> float | None:
        """Of the hypothesis that the mean is as far from 0 as `margin` or farther: the larger p of two one-sided t tests
        (TOST; Schuirmann 1987). 1 where the error is infinite, None without a margin."""
        if self.margin is None:
            return None
        if math.isinf(self.error):
            return 1.0
        return float(special.stdtr(self.n - 1, (abs(self.mean) - self.margin) / self.error))

    @property
    def equivalent(self) -> bool:
        """Whether p of equivalence, corrected over its family, is below 0.05."""
        p = self.equivalence_p if self.corrected_equivalence_p is None else self.corrected_equivalence_p
        return p is not None and p < 1 - LEVEL

    def most(self, sign: int) -> float:
        """The one-sided 95% bound on `sign` (1 or -1) times the mean, of this difference alone: -1 is for what it costs at
        most where more is better. 0 at least."""
        if math.isinf(self.error):
            return math.inf
        return max(0.0, sign * self.mean + float(special.stdtrit(self.n - 1, LEVEL)) * self.error)

    @property
    def significant(self) -> bool:
        """Whether p, corrected over its family, is below 0.05."""
        return (self.p if self.corrected_p is None else self.corrected_p) < 1 - LEVEL

    def __str__(self) -> str:
        spread = f"(n = {self.n})" if math.isinf(self.error) else f"± {self.in_digits(self.half_width)}"
        return f"{self.in_digits(self.mean, '+')} {spread}"

    def in_digits(self, value: float, sign: str = "", up: bool = False) -> str:
        """`value` with as many decimals as the interval's first digit has, one at least; rounded `up` where it is a bound."""
        known = self.half_width if 0 < self.half_width < math.inf else abs(self.mean) or 1.0
        decimals = min(6, max(1, -math.floor(math.log10(known))))
        return f"{math.ceil(value * 10**decimals) / 10**decimals if up else value:{sign}.{decimals}f}"


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """`values` less `baseline`, each by seed, paired over the seeds that both have; None where they share none."""
    seeds = sorted(values.keys() & baseline.keys())
    return mean_difference([values[seed] - baseline[seed] for seed in seeds]) if seeds else None


def mean_difference(deltas: Sequence[float], inflation: float = 1.0) -> Difference:
    """The mean of `deltas`, one a seed; its standard error is taken `inflation` times."""
    sample, n = np.asarray(deltas, float), len(deltas)
    mean, spread = float(sample.mean()), float(sample.std(ddof=1)) if n > 1 else 0.0
    # Accuracies come in steps: seeds that agree to the last image show no spread.
    agreed = spread < 1e-9 * max(1.0, abs(mean))
    return Difference(mean, math.inf if agreed else inflation * spread / math.sqrt(n), n)


@lru_cache
def _noncentrality(n: int, alpha: float, power: float = 0.8) -> float:
    """The true mean, in standard errors, that a two-sided t test of n pairs at level `alpha` finds with this power.

    The noncentral t as a mixture of normals over the spread that a sample may show; scipy's own fails for small n.
    """
    quantile = stats.t.ppf(1 - alpha / 2, n - 1)
    threshold = quantile * np.sqrt(stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, n - 1) / (n - 1))

    def missing(shift: float) -> float:
        return float(np.mean(stats.norm.sf(threshold - shift) + stats.norm.cdf(-threshold - shift)) - power)

    return float(optimize.brentq(missing, 0, 2 * quantile + 4))


def complete(values_SC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of S seeds and which of C cells to compare so that every seed has every cell (nan: it has not).

    A cell that fewer than half of the seeds have is left out, so that it does not take the others with it; then a seed
    that lacks a cell. Booleans, (S,) and (C,).
    """
    there_SC = ~np.isnan(values_SC)
    cells_C = there_SC.any(0) & (2 * there_SC.sum(0) >= there_SC.any(1).sum())
    return there_SC[:, cells_C].all(1) & cells_C.any(), cells_C
