"""How much of the variance of the runs each factor explains: analysis of variance, the seeds being blocks.

A cell is a combination of levels, and every seed that counts has every cell. The effect of a term is what it explains of the
cells' means beyond all terms that do not contain it (sums of squares of type II; Langsrud 2003), up to pairs of factors. Its
error is the same projection of each seed's own cells, its interaction with the seeds: repeated measures. Where the cells are
all combinations of all levels the shares add up to 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from layergraft.stats.paired import LEVEL, complete

SEED = "seed"
MAX_COLUMNS = 400  # of the pairs of factors: with more, main effects alone
TAILS = ((1 + LEVEL) / 2, (1 - LEVEL) / 2)


@dataclass(frozen=True)
class Share:
    """What one factor, or the interaction of several, explains."""

    factors: tuple[str, ...]
    """Empty: the seeds' interaction with the factors, which is the noise."""
    raw: float
    """Its share of the sum of squares."""
    low: float
    high: float
    """The interval of its share of the variance when the noise in it is taken out, from a noncentral F (of the seeds, which
    are drawn: from a central F). 0 for a lower end: these seeds do not tell it from none. nan where there is none."""
    p: float
    """Of there being no such effect; nan where there is no noise to judge it by."""


@dataclass(frozen=True)
class Shares:
    """What each factor explains of the variance between runs."""

    terms: tuple[Share, ...]
    balanced: bool
    """Whether the cells are all combinations of all levels, so that the shares add up to 1."""
    num_runs: int
    lost_seeds: tuple[int, ...] = ()
    """They lack a cell and do not count."""
    num_lost_cells: int = 0
    """Fewer than half of the seeds have them."""
    inseparable: tuple[str, ...] = ()
    """Terms that the others leave nothing to tell of: what goes with them cannot be told from what they do."""
    up_to: int = 2
    """How many factors at most interact in a term."""


def shares(values: Sequence[float], factors: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> Shares | None:
    """The shares of `factors` (name -> a level for each value) and of `seeds`; runs alike in all of it count as their mean.

    Factors with one level are left out. None where nothing varies, or no seed has every cell.
    """
    labels, block = np.unique(np.asarray(seeds), return_inverse=True)
    codes = {name: np.unique(np.asarray(column), return_inverse=True)[1] for name, column in factors.items()}
    levels, cell = np.unique(np.column_stack([*codes.values()]), axis=0, return_inverse=True)
    y_SC, counts_SC = np.zeros((2, len(labels), len(levels)))
    np.add.at(y_SC, (block, cell.ravel()), np.asarray(values, float))
    np.add.at(counts_SC, (block, cell.ravel()), 1)
    y_SC = np.divide(y_SC, counts_SC, out=np.full_like(y_SC, np.nan), where=counts_SC > 0)
    seeds_S, cells_C = complete(y_SC)
    y_SC, levels = y_SC[seeds_S][:, cells_C], levels[cells_C]
    varied = _merged(
        {name: column for name, column in zip(codes, levels.T, strict=True) if np.ptp(column, 0) > 0}
        if len(levels)
        else {}
    )
    if not varied or y_SC.size < 2 or np.ptp(y_SC) == 0:
        return None
    inseparable: list[str] = []
    sizes = [len(np.unique(column)) for column in varied.values()]
    up_to = 1 if sum((a - 1) * (b - 1) for a, b in itertools.combinations(sizes, 2)) > MAX_COLUMNS else 2
    terms = _terms(y_SC, varied, up_to, inseparable)
    lost = tuple(int(seed) for seed in labels[~seeds_S])
    return Shares(tuple(sorted(terms, key=lambda term: -term.raw)), math.prod(sizes) == len(levels), y_SC.size, lost,
                  int((~cells_C).sum()), tuple(inseparable), up_to)  # fmt: skip


def factorial(levels: pd.DataFrame) -> bool:
    """Whether the rows have all combinations of the columns' levels; columns that tell the same rows apart are one."""
    cells = levels.drop_duplicates()
    codes = _merged({name: pd.factorize(cells[name])[0] for name in cells if cells[name].nunique() > 1})
    return len(cells) == math.prod(int(column.max()) + 1 for column in codes.values())


def _merged(codes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Factors that tell the same cells apart, as one: `data.half = data.corrupt.noise`."""
    found: dict[bytes, tuple[list[str], np.ndarray]] = {}
    for name, column in codes.items():
        _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
        as_they_come = np.argsort(np.argsort(first))[inverse]
        found.setdefault(as_they_come.tobytes(), ([], as_they_come))[0].append(name)
    return {" = ".join(names): column for names, column in found.values()}


def _terms(y_SC: np.ndarray, codes: Mapping[str, np.ndarray], up_to: int, inseparable: list[str]) -> list[Share]:
    """Names of terms that have no degree of freedom of their own are put into `inseparable`."""
    num_seeds, num_cells = y_SC.shape
    total = float(((y_SC - y_SC.mean()) ** 2).sum())
    columns: dict[tuple[str, ...], np.ndarray]
    columns = {(name,): _dummies(column) for name, column in codes.items()}
    for a, b in itertools.combinations(codes, 2) if up_to > 1 else ():
        columns[(a, b)] = (columns[(a,)][:, :, None] * columns[(b,)][:, None, :]).reshape(num_cells, -1)
    found = []
    for term, own in columns.items():
        basis = _beyond(own, [x for other, x in columns.items() if not set(term) <= set(other)])
        if basis.shape[1]:
            found.append(_fixed(term, y_SC @ basis, total))
        else:
            inseparable.append(" × ".join(term))
    beyond = _beyond(np.eye(num_cells), list(columns.values()))
    if beyond.shape[1]:
        whole = (
            tuple(codes)
            if up_to == 2 and len(codes) == 3
            else ("interactions of more factors" if up_to > 1 else "all interactions",)
        )
        found.append(_fixed(whole, y_SC @ beyond, total))
    by_seed = float(num_cells * ((y_SC.mean(1) - y_SC.mean()) ** 2).sum())
    noise = float(((y_SC - y_SC.mean(1, keepdims=True) - y_SC.mean(0) + y_SC.mean()) ** 2).sum())
    found.append(_drawn(by_seed, num_seeds - 1, noise, (num_seeds - 1) * (num_cells - 1), total, num_cells))
    return [*found, Share((), noise / total, np.nan, np.nan, np.nan)]


def _dummies(column: np.ndarray) -> np.ndarray:
    return np.asarray(column[:, None] == np.arange(1, column.max() + 1), float)


def _beyond(columns: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """An orthonormal basis (C, rank) of what `columns` span beyond `others` and a constant."""
    basis = _basis(np.column_stack([np.ones(len(columns)), *others]))
    return _basis(columns - basis @ (basis.T @ columns))


def _basis(x: np.ndarray) -> np.ndarray:
    vectors, sizes, _ = np.linalg.svd(x, full_matrices=False)
    return vectors[:, sizes > max(x.shape) * 1e-10]  # dummies are of size 1


def _fixed(names: tuple[str, ...], effects_SR: np.ndarray, total: float) -> Share:
    """A term by its projections, (seeds, degrees of freedom). The interval: the noncentralities that would make an F as large,
    or as small, one time in 40 (Steiger 2004), as shares of all squares but its own."""
    num_seeds, free = effects_SR.shape
    square = float(num_seeds * (effects_SR.mean(0) ** 2).sum())
    error, error_free = float(((effects_SR - effects_SR.mean(0)) ** 2).sum()), free * (num_seeds - 1)
    if error_free == 0 or error <= 1e-8 * total:
        return Share(names, square / total, np.nan, np.nan, np.nan)
    noise = error / error_free
    f = square / free / noise

    def noncentrality(quantile: float) -> float:
        def beyond(x: float) -> float:
            return float(stats.ncf.cdf(f, free, error_free, x)) - quantile

        if f <= 0 or stats.f.cdf(f, free, error_free) <= quantile:
            return 0.0
        high = free * f + 10.0
        while beyond(high) > 0:
            high *= 2
        return float(optimize.brentq(beyond, 0, high))

    others = total - square
    low, high = (end / (others + end) for end in (noncentrality(q) * noise for q in TAILS))
    return Share(names, square / total, low, high, float(stats.f.sf(f, free, error_free)))


def _drawn(square: float, free: int, error: float, error_free: int, total: float, runs_a_seed: int) -> Share:
    """Of the seeds, levels drawn from many: their variance relative to the noise, by the central F. `square` and `error` are
    sums of squares."""
    if free == 0 or error_free == 0 or error <= 1e-8 * total:
        return Share((SEED,), square / total, np.nan, np.nan, np.nan)
    f = square / free / (error / error_free)
    ends = [f / float(stats.f.ppf(q, free, error_free)) for q in TAILS]
    parts = [max(end - 1, 0.0) * (error / error_free) * (free + 1) for end in ends]
    low, high = (part / (total - square + part) for part in parts)
    return Share((SEED,), square / total, float(low), float(high), float(stats.f.sf(f, free, error_free)))
