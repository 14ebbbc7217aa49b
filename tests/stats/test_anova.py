"""Shares of variance: against statsmodels, against numbers worked out by hand, and by simulation."""

import itertools

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import AnovaRM, anova_lm

from layergraft.stats import factorial, shares


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


def lacking(rows):
    """Without the cell (0, 1): the design is whole, and not balanced."""
    return rows[(rows.a != 0) | (rows.b != 1)].reset_index(drop=True)


def test_shares_of_a_design_that_lacks_cells_are_type_ii():
    rows = lacking(design(np.random.default_rng(2), num_seeds=5))
    found, terms = of(rows)
    additive = ols("y ~ C(a) + C(b) + C(seed)", rows).fit()
    table = anova_lm(additive, typ=2)
    total = ((rows.y - rows.y.mean()) ** 2).sum()
    assert not found.balanced and found.lost_seeds == ()
    for name, factors in {"C(a)": ("a",), "C(b)": ("b",), "C(seed)": ("seed",)}.items():
        assert terms[factors].raw == pytest.approx(table.sum_sq[name] / total)
    every_cell = ols("y ~ C(cell) + C(seed)", rows.assign(cell=rows.a * 2 + rows.b)).fit()
    assert terms[("a", "b")].raw == pytest.approx((additive.ssr - every_cell.ssr) / total)
    assert terms[()].raw == pytest.approx(every_cell.ssr / total)


def test_a_seed_that_lacks_a_run_does_not_count_and_is_named():
    rows = design(np.random.default_rng(3), num_seeds=5)
    found, terms = of(rows.drop(rows.index[(rows.seed == 2) & (rows.a == 1) & (rows.b == 0)]))
    without, the_same = of(rows[rows.seed != 2])
    assert found.balanced and found.lost_seeds == (2,) and found.num_runs == without.num_runs == 24
    assert {name: term.p for name, term in terms.items()} == pytest.approx(
        {name: term.p for name, term in the_same.items()}, nan_ok=True
    )


def test_a_cell_that_few_seeds_have_does_not_take_the_others_with_it():
    rows = design(np.random.default_rng(3), num_seeds=5)
    found, _ = of(rows[(rows.seed == 0) | (rows.a != 2)])
    assert found.balanced and found.num_lost_cells == 2 and found.lost_seeds == () and found.num_runs == 20


def test_runs_alike_in_everything_count_as_their_mean():
    rows = design(np.random.default_rng(4))
    twice = pd.concat([rows.assign(y=rows.y + 1), rows.assign(y=rows.y - 1)])
    ps = ({name: (term.raw, term.p) for name, term in of(x)[1].items() if name} for x in (twice, rows))
    assert next(ps) == {name: pytest.approx(figures) for name, figures in next(ps).items()}


@pytest.mark.parametrize(
    "part", [lambda rows: rows, pytest.param(lacking, marks=pytest.mark.slow), lambda rows: rows.drop(rows.index[[3]])]
)
def test_what_has_no_effect_is_found_5_times_in_100_whatever_seeds_do_to_it(part):
    """Strategies whose effect differs from seed to seed, and is nought in the mean."""
    rng, found, repeats = np.random.default_rng(5), 0, 600
    for _ in range(repeats):
        rows = design(rng, num_seeds=5)
        rows["y"] = rows.b + rng.normal(0, 1, (3, 5))[rows.a, rows.seed] + rng.normal(0, 1, len(rows))
        found += of(part(rows))[1][("a",)].p < 0.05
    assert 0.03 < found / repeats < 0.07


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
    factors = {f"f{i}": np.repeat(rng.integers(0, 3, 100), 4) for i in range(20)}
    found = shares(rng.normal(0, 1, 400), factors, np.tile(range(4), 100))
    names = {term.factors for term in found.terms}
    assert not found.balanced and found.up_to == 1
    assert names == {(name,) for name in factors} | {("seed",), ("all interactions",), ()}
    assert shares(rng.normal(0, 1, 200), {"a": range(200)}, np.tile(range(4), 50)) is None  # no cell has two seeds


def test_an_effect_that_dwarfs_the_noise_has_no_interval_and_is_no_crash():
    terms = {t.factors: t for t in shares([50, 90, 50, 90.001], {"a": ["x", "y", "x", "y"]}, [0, 0, 1, 1]).terms}
    assert terms[("a",)].raw == pytest.approx(1) and np.isnan(terms[("a",)].low)


def test_factorial_counts_factors_that_go_together_once():
    whole = pd.DataFrame(itertools.product("ab", "xyz"), columns=["one", "two"])
    assert factorial(whole.assign(tied=whole.two)) and factorial(pd.concat([whole, whole])) and not factorial(whole[1:])
