"""Many comparisons at once: p values that hold for all of them together (Holm 1979)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from layergraft.stats.paired_differences import Difference


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p values that hold for the whole family of contrasts (Holm 1979), in the order given."""
    p = np.asarray(p_values, float)
    order, corrected = np.argsort(p, kind="stable"), np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, np.arange(len(p), 0, -1) * p[order]))
    return corrected.tolist()


def together(differences: Iterable[Difference]) -> list[Difference]:
    """These differences as one family, corrected by Holm's method; the tests of equivalence, of those with a margin, as another."""
    family = list(differences)
    corrected = holm([d.p for d in family])
    equivalence = iter(holm([d.equivalence_p for d in family if d.equivalence_p is not None]))
    return [
        replace(d, family=len(family), corrected_p=p, corrected_equivalence_p=next(equivalence) if d.margin else None)
        for d, p in zip(family, corrected, strict=True)
    ]


def together_where_known(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """As `together`, of those that are not None."""
    found = iter(together(d for d in differences if d is not None))
    return [d and next(found) for d in differences]
