"""Whether a measure of the sources goes with what their donors gain: a rank correlation over sources, which are what is
drawn here. Seeds share the sources, so that any number of seeds tells of these sources alone.

Sources that are built from factors (three corruptions of two halves) are not exchangeable: those that share a level share
what that level does to the measure and to the gain. So p is taken over the arrangements that keep who shares a level with
whom. Where the sources are all combinations of all levels, these are the relabellings of each factor's levels, a k! for a
factor of k levels. The test is exact under the hypothesis that such a relabelling does not change the gains' joint
distribution, given the measure: any sum of effects of the factors, of their combinations and of noise, each drawn without
regard to the measure (Anderson & ter Braak 2003, on exchangeable units). To permute sources within the levels of the other
factors would assume that the permuted factor changes no gain; to permute residuals (Freedman & Lane 1983) asks what the
measure tells beyond the factors, and is approximate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from layergraft.stats.multiple_comparisons import holm

Levels = Mapping[str, Sequence[Any]]
Shared = tuple[tuple[int, ...], ...]
MAX_ARRANGEMENTS = 50_000  # that are all counted, as of 8 exchangeable sources
DRAWN = 10_000  # of more arrangements


@dataclass(frozen=True)
class Association:
    """How gains go with a measure of similarity, over sources."""

    rho: float
    """Spearman's rank correlation."""
    n: int
    """Sources."""
    p: float
    """Two-sided: the share of arrangements of the sources with a correlation as far from 0."""
    smallest_p: float
    """That this measure can have over these sources, whatever their gains."""
    corrected_p: float | None = None
    smallest_corrected_p: float | None = None

    @property
    def significant(self) -> bool:
        return (self.p if self.corrected_p is None else self.corrected_p) < 0.05

    @property
    def decidable(self) -> bool:
        """Whether any gains would be significant."""
        return (self.smallest_p if self.smallest_corrected_p is None else self.smallest_corrected_p) < 0.05


def association(measure_N: np.ndarray, gain_N: np.ndarray, levels: Levels | None = None) -> Association | None:
    """Of N sources, whose factors have these `levels` (factor -> one for each source, nan where it does not apply); without
    factors any source may take any other's place. None for fewer than three sources and where measure or gain does not vary.

    Of more than MAX_ARRANGEMENTS a sample is drawn, the same each time, with the sources' own among them (Phipson & Smyth 2010).
    """
    n = len(measure_N)
    if n < 3 or np.ptp(measure_N) == 0 or np.ptp(gain_N) == 0:
        return None
    x, y = (stats.rankdata(values) - (n + 1) / 2 for values in (measure_N, gain_N))
    shared = _shared(levels or {}, n)
    every_MN = _every(shared)
    orders_MN = _drawn(shared) if every_MN is None else every_MN
    scale = math.sqrt((x**2).sum() * (y**2).sum())
    rho = float(x @ y / scale)
    p = np.mean(np.abs(y[orders_MN] @ x) / scale >= abs(rho) - 1e-9)
    smallest = np.mean(np.abs(x[orders_MN] @ x) / (x @ x) >= 1 - 1e-9)  # of gains in the measure's own order
    return Association(rho, n, float(p), float(smallest))


def comparable(levels: Levels) -> np.ndarray:
    """Which sources to compare, booleans (N,): one after the other is left out while the rest then have more arrangements, such
    as a control beside all combinations of two factors."""
    (n,) = {len(column) for column in levels.values()}
    kept = np.arange(n)

    def every(sources: np.ndarray) -> np.ndarray | None:
        there = {name: np.asarray(column, object)[sources].tolist() for name, column in levels.items()}
        return _every(_shared(there, len(sources)))

    def number(sources: np.ndarray) -> float:
        orders_MN = every(sources)
        return math.inf if orders_MN is None else len(orders_MN)

    while (orders_MN := every(kept)) is not None:
        places = np.unique(orders_MN.min(0))  # one of those that can take each other's place stands for all
        others = max((np.delete(kept, place) for place in places), key=number, default=kept)
        if number(others) <= len(orders_MN):
            break
        kept = others
    return np.isin(np.arange(n), kept)


def _shared(levels: Levels, n: int) -> Shared:
    """N x N: which factors a source has in common with another, as a number for each set of factors; a source with itself: -1."""
    codes = [pd.factorize(np.asarray(column, object))[0] for column in levels.values()]
    bits = [((code[:, None] == code) & (code >= 0)) * 2**position for position, code in enumerate(codes)]
    shared_NN = np.asarray(sum(bits, np.zeros((n, n), int)))
    shared_NN[np.diag_indices(n)] = -1
    return tuple(map(tuple, shared_NN.tolist()))


@lru_cache(maxsize=16)  # several measures have the same sources
def _every(shared: Shared) -> np.ndarray | None:
    """The orders (M, N) of the sources in which any two have in common what those have whose places they take. None where there
    are more than MAX_ARRANGEMENTS."""
    shared_NN, orders_MP = np.array(shared, np.int32), np.zeros((1, 0), int)
    for _ in shared_NN:
        row_M, next_M = np.nonzero(_fitting(orders_MP, shared_NN))
        if len(row_M) > MAX_ARRANGEMENTS:
            return None
        orders_MP = np.column_stack([orders_MP[row_M], next_M])
    return orders_MP


@lru_cache(maxsize=4)
def _drawn(shared: Shared) -> np.ndarray:
    """The sources' own order and, at random, at most DRAWN. These grow place by place, each by a fitting source at random, and are
    dropped where none is left. As all beginnings of an order can be completed in as many ways, all orders are drawn alike."""
    rng, shared_NN, orders_MP = np.random.default_rng(0), np.array(shared, np.int32), np.zeros((DRAWN, 0), int)
    for _ in shared_NN:
        fits_MN = _fitting(orders_MP, shared_NN)
        next_M = (rng.random(fits_MN.shape) * fits_MN).argmax(1)
        orders_MP = np.column_stack([orders_MP, next_M])[fits_MN.any(1)]
    return np.vstack([np.arange(len(shared_NN)), orders_MP])


def _fitting(orders_MP: np.ndarray, shared_NN: np.ndarray) -> np.ndarray:
    """Which sources, (M, N), can take the next place in each of these beginnings of an order."""
    place = orders_MP.shape[1]
    return np.asarray((shared_NN[orders_MP] == shared_NN[place, :place, None]).all(1))


def corrected(found: list[Association]) -> list[Association]:
    """As one family, by Holm's method."""
    family = zip(found, holm([a.p for a in found]), holm([a.smallest_p for a in found]), strict=True)
    return [replace(a, corrected_p=p, smallest_corrected_p=smallest) for a, p, smallest in family]
