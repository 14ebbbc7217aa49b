"""How much of the variance of the runs each factor explains: analysis of variance, the seeds being blocks.

A design is balanced where every combination of levels has every seed once. Its sums of squares are exact and add up to
the whole; an effect is judged against its own interaction with the seeds (repeated measures). Where runs are missing or
arms were left out, sums of squares are of type II (Langsrud 2003): what a term explains beyond all terms that do not
contain it, up to pairs, judged against what is left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

SEED = "seed"


@dataclass(frozen=True)
class Share:
    """What one factor, or the interaction of several, explains."""

    factors: tuple[str, ...]
    """Empty: what nothing else explains, the seeds' interaction with the factors; three names and `...`: all of higher order."""
    raw: float
    """Its share of the sum of squares; in a balanced design these add up to 1."""
    low: float
    high: float
    """The interval of its share of the variance beyond the noise of the seeds, from a noncentral F (of the seeds, which are
    drawn: from a central F). 0 for a lower end: these seeds do not tell it from none. nan where there is none."""
    p: float
    """Of there being no such effect; nan where there is no noise to judge it by."""


@dataclass(frozen=True)
class Shares:
    terms: tuple[Share, ...]
    balanced: bool
    num_runs: int
    inseparable: tuple[str, ...] = ()
    """Terms that the others leave nothing to tell of: what goes with them cannot be told from what they do."""
    up_to: int = 2
    """How many factors at most interact in a term of an unbalanced design."""


MAX_COLUMNS = 400  # of the pairs of an unbalanced design: with more, main effects alone


def shares(
    values: Sequence[float], factors: Mapping[str, Sequence], seeds: Sequence, level: float = 0.95
) -> Shares | None:
    """The shares of `factors` (name -> a level for each value) and of `seeds`; None where nothing varies.

    Factors with one level are left out.
    """
    y = np.asarray(values, float)
    codes = {name: np.unique(np.asarray(column), return_inverse=True)[1] for name, column in factors.items()}
    codes = _merged({name: column for name, column in codes.items() if column.max(initial=0) > 0})
    blocks = np.unique(np.asarray(seeds), return_inverse=True)[1]
    if len(y) < 2 or not codes or np.ptp(y) == 0:
        return None
    levels = np.column_stack([*codes.values(), blocks])
    shape = tuple(int(number) + 1 for number in levels.max(0))
    inseparable: list[str] = []
    pairs = sum((a - 1) * (b - 1) for a, b in itertools.combinations(shape[:-1], 2))
    up_to = 1 if pairs > MAX_COLUMNS else 2
    if len(y) == math.prod(shape) and len(np.unique(levels, axis=0)) == len(y):
        table = np.empty(shape)
        table[tuple(levels.T)] = y
        terms, balanced = _balanced(table, tuple(codes), level), True
    else:
        terms, balanced = _unbalanced(y, codes, blocks, level, up_to, inseparable), False
    ordered = tuple(sorted(terms, key=lambda term: -term.raw))
    return Shares(ordered, balanced, len(y), tuple(inseparable), up_to)


def _merged(codes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Factors that tell the same runs apart, as one: `data.half = data.corrupt.noise`."""
    found: dict[bytes, list[str]] = {}
    for name, column in codes.items():
        _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
        found.setdefault(np.argsort(np.argsort(first))[inverse].tobytes(), []).append(name)  # numbered as they come
    return {" = ".join(names): codes[names[0]] for names in found.values()}


def _balanced(table: np.ndarray, names: tuple[str, ...], level: float) -> list[Share]:
    axes, seed = range(len(names)), len(names)
    squares, free = _sums_of_squares(table)
    total = sum(squares.values())
    found = []
    for term in _subsets(axes, 1, 2):
        error = (*term, seed)
        found.append(_fixed(tuple(names[i] for i in term), squares[term], free[term], squares[error], free[error],
                            total, level))  # fmt: skip
    higher = list(_subsets(axes, 3, len(names)))
    if higher:
        parts = [[sum(of[(*term, *extra)] for term in higher) for extra in ((), (seed,)) for of in (squares, free)]]
        found += [_fixed((*names[:3], *(["..."] if len(names) > 3 else [])), *part, total, level) for part in parts]
    errors = [term for term in squares if seed in term and len(term) > 1]
    rest, rest_free = sum(squares[term] for term in errors), sum(free[term] for term in errors)
    found.append(_drawn(squares[(seed,)], free[(seed,)], rest, rest_free, total, table.size // table.shape[-1], level))
    found.append(Share((), rest / total, np.nan, np.nan, np.nan))
    return found


def _sums_of_squares(table: np.ndarray) -> tuple[dict[tuple[int, ...], float], dict[tuple[int, ...], int]]:
    """Axes of a term -> its sum of squares and its degrees of freedom, for every set of axes."""
    effects: dict[tuple[int, ...], np.ndarray] = {(): table.mean(keepdims=True)}
    every = range(table.ndim)
    for term in _subsets(every, 1, table.ndim):
        mean = table.mean(axis=tuple(axis for axis in every if axis not in term), keepdims=True)
        effects[term] = mean - sum(effects[part] for part in _subsets(term, 0, len(term) - 1))
    squares = {term: float((e**2).sum() * (table.size / e.size)) for term, e in effects.items() if term}
    free = {term: int(np.prod([table.shape[axis] - 1 for axis in term])) for term in squares}
    return squares, free


def _subsets(items: Sequence[int], smallest: int, largest: int):
    return (term for size in range(smallest, largest + 1) for term in itertools.combinations(items, size))


def _unbalanced(
    y: np.ndarray, codes: Mapping[str, np.ndarray], blocks: np.ndarray, level: float, up_to: int, inseparable: list[str]
) -> list[Share]:
    """Names of terms that have no degree of freedom of their own are put into `inseparable`."""
    terms: dict[tuple[str, ...], np.ndarray] = {(name,): _dummies(column) for name, column in codes.items()}
    for a, b in itertools.combinations(codes, 2) if up_to > 1 else ():
        terms[(a, b)] = _products(terms[(a,)], terms[(b,)])
    terms[(SEED,)] = _dummies(blocks)
    whole_rank, rest = _fit(y, list(terms.values()))
    total, rest_free = float(((y - y.mean()) ** 2).sum()), len(y) - whole_rank
    squares, free = {}, {}
    for term in terms:
        without = [x for other, x in terms.items() if not set(term) <= set(other)]
        rank, error = _fit(y, without)
        full_rank, full = _fit(y, [*without, terms[term]])
        squares[term], free[term] = max(error - full, 0.0), full_rank - rank
    found = [_drawn(squares[(SEED,)], free[(SEED,)], rest, rest_free, total, len(y) / (blocks.max() + 1), level)]
    for term in terms:
        if not free[term]:
            inseparable.append(" × ".join(term))
        elif term != (SEED,):
            by_seed = (squares[(SEED,)], free[(SEED,)])
            found.append(_fixed(term, squares[term], free[term], rest, rest_free, total, level, by_seed))
    found.append(Share((), rest / total, np.nan, np.nan, np.nan))
    return found


def _dummies(column: np.ndarray) -> np.ndarray:
    return (column[:, None] == np.arange(1, column.max() + 1)).astype(float)


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)


def _fit(y: np.ndarray, parts: Sequence[np.ndarray]) -> tuple[int, float]:
    """Rank and residual sum of squares of the least-squares fit on these columns and a constant."""
    x = np.column_stack([np.ones(len(y)), *parts])
    basis, sizes, _ = np.linalg.svd(x, full_matrices=False)
    basis = basis[:, sizes > sizes[0] * max(x.shape) * np.finfo(float).eps]
    residual = y - basis @ (basis.T @ y)
    return basis.shape[1], float((residual**2).sum())


def _fixed(
    names: tuple[str, ...], square: float, free: int, error: float, error_free: int, total: float, level: float,
    by_seed: tuple[float, int] | None = None,
) -> Share:  # fmt: skip
    """Steiger 2004: the noncentralities that would make an F as large, or as small, one time in 40.

    They are of the effect relative to the noise. Where that is what all else leaves, and not the effect's own interaction
    with the seeds, the share is uncertain by the seeds' variance too, of which `by_seed` has sum of squares and degrees of
    freedom: the two intervals are combined as variances are, of logarithms (MOVER, Donner & Zou 2012).
    """
    if error_free == 0 or error <= 1e-12 * total:
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
    ends = [noncentrality(q) * noise for q in ((1 + level) / 2, (1 - level) / 2)]
    here = square - free * noise
    if by_seed is not None and by_seed[1] and here > 0 and others > 0:
        seeds, seeds_free = by_seed
        bounds = [
            others - seeds + seeds * seeds_free / stats.chi2.ppf(q, seeds_free)
            for q in (1 - (1 - level) / 2, (1 - level) / 2)
        ]
        ratio, down, up = here / others, np.log(others / bounds[0]), np.log(bounds[1] / others)
        low = ratio * np.exp(-np.hypot(np.log(here / ends[0]), up)) if ends[0] > 0 else 0.0
        high = ratio * np.exp(np.hypot(np.log(ends[1] / here), down))
        low, high = low / (1 + low), high / (1 + high)
    else:
        low, high = (end / (others + end) for end in ends)
    return Share(names, square / total, float(low), float(high), float(stats.f.sf(f, free, error_free)))


def _drawn(
    square: float, free: int, error: float, error_free: int, total: float, runs_a_seed: float, level: float
) -> Share:
    """Of the seeds, levels drawn from many: their variance relative to the noise, by the central F."""
    if free == 0 or error_free == 0 or error <= 1e-12 * total:
        return Share((SEED,), square / total, np.nan, np.nan, np.nan)
    noise = error / error_free
    f = square / free / noise
    num_runs = runs_a_seed * (free + 1)
    ends = [f / float(stats.f.ppf(q, free, error_free)) for q in ((1 + level) / 2, (1 - level) / 2)]
    parts = [max(end - 1, 0.0) / runs_a_seed * noise * num_runs for end in ends]
    low, high = (part / (total - square + part) for part in parts)
    return Share((SEED,), square / total, float(low), float(high), float(stats.f.sf(f, free, error_free)))
