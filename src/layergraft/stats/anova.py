"""How much of the variance of the runs each factor explains: analysis of variance, the seeds being blocks.

A cell is a combination of levels, and every seed that counts has every cell. The effect of a term is what it explains of the
cells' means beyond all terms that do not contain it (sums of squares of type II; Langsrud 2003), up to pairs of factors. Its
error is the same projection of each seed's own cells, its interaction with the seeds: repeated measures. Where the cells are
all combinations of all levels the shares add up to 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from layergraft.stats.paired_differences import LEVEL, complete

SEED = "seed"
MAX_COLUMNS = 400  # of the pairs of factors: with more, main effects alone
TAILS = ((1 + LEVEL) / 2, (1 - LEVEL) / 2)
End = Callable[[float, int, int, float], float]


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
    varied = _merged({name: column for name, column in zip(codes, levels.T, strict=True) if len(set(column)) > 1})
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
        as_they_come = pd.factorize(column)[0]
        found.setdefault(as_they_come.tobytes(), ([], as_they_come))[0].append(name)
    return {" = ".join(names): column for names, column in found.values()}


def _terms(y_SC: np.ndarray, codes: Mapping[str, np.ndarray], up_to: int, inseparable: list[str]) -> list[Share]:
    """Names of terms that have no degree of freedom of their own are put into `inseparable`."""
    num_seeds, num_cells = y_SC.shape
    total = float(((y_SC - y_SC.mean()) ** 2).sum())
    columns: dict[tuple[str, ...], np.ndarray]
    columns = {(name,): np.eye(column.max() + 1)[column, 1:] for name, column in codes.items()}  # dummies
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
        rest = "interactions of more factors" if up_to > 1 else "all interactions"
        found.append(_fixed(tuple(codes) if up_to == 2 and len(codes) == 3 else (rest,), y_SC @ beyond, total))
    by_seed = float(num_cells * ((y_SC.mean(1) - y_SC.mean()) ** 2).sum())
    noise = float(((y_SC - y_SC.mean(1, keepdims=True) - y_SC.mean(0) + y_SC.mean()) ** 2).sum())
    free = (num_seeds - 1, (num_seeds - 1) * (num_cells - 1))
    found.append(_share((SEED,), (by_seed, noise), free, total, _ratio, num_seeds))
    return [*found, Share((), noise / total, np.nan, np.nan, np.nan)]


def _beyond(columns: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """An orthonormal basis (C, rank) of what `columns` span beyond `others` and a constant."""
    basis = _basis(np.column_stack([np.ones(len(columns)), *others]))
    return _basis(columns - basis @ (basis.T @ columns))


def _basis(x: np.ndarray) -> np.ndarray:
    vectors, sizes, _ = np.linalg.svd(x, full_matrices=False)
    return vectors[:, sizes > max(x.shape) * 1e-10]  # dummies are of size 1


def _fixed(names: tuple[str, ...], effects_SR: np.ndarray, total: float) -> Share:
    """A term by its projections, (seeds, degrees of freedom)."""
    num_seeds, free = effects_SR.shape
    square = float(num_seeds * (effects_SR.mean(0) ** 2).sum())
    error = float(((effects_SR - effects_SR.mean(0)) ** 2).sum())
    return _share(names, (square, error), (free, free * (num_seeds - 1)), total, _noncentrality, 1)


def _share(
    names: tuple[str, ...], squares: tuple[float, float], free: tuple[int, int], total: float, end: End, times: int
) -> Share:
    """A term by its sum of squares and that of its error, with their degrees of freedom. The interval: what would make an
    F as large, or as small, one time in 40, by `end` in units of the noise and so many `times`, as shares of all squares
    but its own."""
    (square, error), others = squares, total - squares[0]
    if 0 in free or error <= 1e-8 * total:
        return Share(names, square / total, np.nan, np.nan, np.nan)
    noise = error / free[1]
    f = square / free[0] / noise
    low, high = (part / (others + part) for part in (end(f, *free, q) * noise * times for q in TAILS))
    return Share(names, square / total, low, high, float(stats.f.sf(f, *free)))


def _noncentrality(f: float, free: int, error_free: int, quantile: float) -> float:
    """Of the F distribution that has `quantile` at `f` (Steiger 2004); 0 where already the central one has less."""

    def beyond(x: float) -> float:
        return float(stats.ncf.cdf(f, free, error_free, x)) - quantile

    if f <= 0 or stats.f.cdf(f, free, error_free) <= quantile:
        return 0.0
    high = free * f + 10.0
    while beyond(high) > 0:
        high *= 2
    return float(optimize.brentq(beyond, 0, high))


def _ratio(f: float, free: int, error_free: int, quantile: float) -> float:
    """Of levels drawn from many, the seeds: their variance relative to the noise, by the central F."""
    return max(f / float(stats.f.ppf(quantile, free, error_free)) - 1, 0.0)
