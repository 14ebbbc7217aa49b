"""Whether a measure of the sources goes with what their donors gain: a rank correlation over sources, which are what is
drawn here. Seeds share the sources, so that any number of seeds tells of these sources alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from layergraft.stats.multiple_comparisons import holm

EXACT = 9  # sources up to which every order is counted
FEWEST = 5  # sources of which a perfect order is told from chance: 2 of 120 orders


@dataclass(frozen=True)
class Association:
    """How gains go with a measure of similarity, over sources."""

    rho: float
    """Spearman's rank correlation."""
    n: int
    """Sources."""
    p: float
    """Two-sided: the share of orders of the sources with a correlation as far from 0. 1 below FEWEST sources."""
    corrected_p: float | None = None

    @property
    def significant(self) -> bool:
        return (self.p if self.corrected_p is None else self.corrected_p) < 0.05


def association(measure_N: np.ndarray, gain_N: np.ndarray) -> Association | None:
    """Of N sources; None where either does not vary. Nothing is drawn: above EXACT sources p is of the t approximation."""
    n = len(measure_N)
    if n < 3 or np.ptp(measure_N) == 0 or np.ptp(gain_N) == 0:
        return None
    x, y = (stats.rankdata(values) - (n + 1) / 2 for values in (measure_N, gain_N))
    scale = math.sqrt((x**2).sum() * (y**2).sum())
    rho = float(x @ y / scale)
    if n < FEWEST:
        return Association(rho, n, 1.0)
    if n > EXACT:
        return Association(rho, n, float(stats.spearmanr(measure_N, gain_N).pvalue))
    orders = np.array(list(itertools.permutations(range(n))))
    return Association(rho, n, float(np.mean(np.abs(y[orders] @ x) / scale >= abs(rho) - 1e-9)))


def corrected(found: list[Association]) -> list[Association]:
    """As one family, by Holm's method."""
    return [replace(a, corrected_p=p) for a, p in zip(found, holm([a.p for a in found]), strict=True)]
