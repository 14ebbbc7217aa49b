"""Shares of variance: against statsmodels, against numbers worked out by hand, and by simulation."""

import itertools

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import AnovaRM, anova_lm

from layergraft.stats import shares


def design(rng, num_seeds=4, levels=(3, 2), drop=0):
    rows = pd.DataFrame(
        itertools.product(*map(range, levels), range(num_seeds)), columns=[*"abc"[: len(levels)], "seed"]
    )
    rows["y"] = (
        rng.normal(0, 1, len(rows)) + rows.a * 0.8 + rows.a * rows.b * 0.5 + rng.normal(0, 1, num_seeds)[rows.seed]
    )
    return rows.drop(rng.choice(len(rows), drop, replace=False)).reset_index(drop=True)


def of(rows, names="ab"):
    found = shares(rows.y, {name: rows[name] for name in names}, rows.seed)
    return found, {term.factors: term for term in found.terms}


def test_balanced_shares_are_exact_and_add_up():
    rows = design(np.random.default_rng(0), levels=(3, 2, 2))
    found, terms = of(rows, "abc")
    table = anova_lm(ols("y ~ C(a) * C(b) * C(c) + C(seed)", rows).fit())
    total = table.sum_sq.sum()
    for name, factors in {"C(a)": ("a",), "C(a):C(b)": ("a", "b"), "C(seed)": ("seed",), "C(a):C(b):C(c)": ("a", "b", "c"),
                          "Residual": ()}.items():  # fmt: skip
        assert terms[factors].raw == pytest.approx(table.sum_sq[name] / total)
    assert found.balanced and sum(term.raw for term in found.terms) == pytest.approx(1)


def test_balanced_effects_are_judged_as_in_repeated_measures():
    rows = design(np.random.default_rng(1))
    _, terms = of(rows)
    theirs = AnovaRM(rows, "y", "seed", within=["a", "b"]).fit().anova_table
    assert [terms[factors].p for factors in (("a",), ("b",), ("a", "b"))] == pytest.approx(list(theirs["Pr > F"]))


def test_unbalanced_shares_are_type_ii():
    rows = design(np.random.default_rng(2), num_seeds=5, drop=6)
    found, terms = of(rows)
    table = anova_lm(ols("y ~ C(a) * C(b) + C(seed)", rows).fit(), typ=2)
    total = ((rows.y - rows.y.mean()) ** 2).sum()
    assert not found.balanced
    for name, factors in {"C(a)": ("a",), "C(b)": ("b",), "C(a):C(b)": ("a", "b"), "C(seed)": ("seed",)}.items():
        assert terms[factors].raw == pytest.approx(table.sum_sq[name] / total)
        assert terms[factors].p == pytest.approx(table["PR(>F)"][name])


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_intervals_cover_at_least_what_they_say(num_seeds):
    rng, reps = np.random.default_rng(num_seeds), 400
    a = np.array([-1.0, 0.0, 1.0])
    i, j, seed = (x.ravel() for x in np.meshgrid(range(3), range(2), range(num_seeds), indexing="ij"))
    spread, noise = 0.6, 0.8
    total = (a**2).mean() + spread**2 + noise**2
    true = {("a",): (a**2).mean() / total, ("b",): 0.0, ("seed",): spread**2 / total}
    covered, found = dict.fromkeys(true, 0), 0
    for _ in range(reps):
        y = a[i] + rng.normal(0, spread, num_seeds)[seed] + rng.normal(0, noise, len(i))
        terms = {term.factors: term for term in shares(y, {"a": i, "b": j}, seed).terms}
        for name in true:
            covered[name] += terms[name].low <= true[name] <= terms[name].high
        found += terms[("b",)].p < 0.05
    assert min(covered.values()) / reps > 0.92
    assert 0.02 < found / reps < 0.08  # what is not there is found 5 times in 100


def test_nothing_to_share():
    assert shares([1.0, 1.0], {"a": [0, 1]}, [0, 0]) is None
    assert shares([1.0, 2.0], {"a": [0, 0]}, [0, 1]) is None
    one_seed = shares([1.0, 2.0, 4.0], {"a": [0, 1, 2]}, [0, 0, 0])
    assert {t.factors: t.raw for t in one_seed.terms}[("a",)] == pytest.approx(1) and np.isnan(one_seed.terms[0].p)


def test_factors_that_go_together_are_one_and_what_cannot_be_told_is_named():
    rng = np.random.default_rng(0)
    half = np.repeat([0, 1], 12)
    tuned = np.tile(np.repeat([0, 1, 2], 4), 2)
    y = 10 * half + rng.normal(0, 1, 24)
    found = shares(y, {"half": half, "noise": 5 - 5 * half, "tuned": tuned}, np.tile(range(4), 6))
    terms = {term.factors: term for term in found.terms}
    assert found.balanced and terms[("half = noise",)].raw > 0.9
    nested = shares(y[1:], {"tuned": tuned[1:], "strategy": (tuned[1:] > 0).astype(int)}, np.tile(range(4), 6)[1:])
    assert set(nested.inseparable) == {"strategy", "tuned × strategy"}


def test_many_factors_are_no_crash():
    rng = np.random.default_rng(0)
    factors = {f"f{i}": rng.integers(0, 3, 200) for i in range(42)}
    found = shares(rng.normal(0, 1, 200), factors, rng.integers(0, 4, 200))
    assert not found.balanced and found.up_to == 1 and len(found.terms) == 44
