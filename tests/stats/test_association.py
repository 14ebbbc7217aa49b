"""Rank correlation over sources: against scipy, by hand, and by simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from layergraft.stats import association, comparable
from layergraft.stats.association import corrected


def crossed(*sizes):
    """Sources of all combinations of factors with so many levels: factor -> levels."""
    return dict(zip("abc", np.array(list(itertools.product(*map(range, sizes)))).T.tolist(), strict=False))


def clustered(rng, levels, factor):
    """A measure, or gains, in which the sources of a level are alike."""
    level = np.asarray(levels[factor])
    return rng.normal(size=level.max() + 1)[level] + 0.1 * rng.normal(size=len(level))


@pytest.mark.parametrize("n", [5, 8, 12])
def test_agrees_with_scipy(n):
    rng = np.random.default_rng(n)
    measure, gain = rng.normal(size=n), rng.normal(size=n)
    found, theirs = association(measure, gain), stats.spearmanr(measure, gain)
    assert found.rho == pytest.approx(theirs.statistic) and found.n == n
    if n > 8:  # drawn
        assert found.p == pytest.approx(theirs.pvalue, abs=0.02) and found == association(measure, gain)
    elif n == 5:
        exact = stats.permutation_test(
            (measure,), lambda x: stats.spearmanr(x, gain).statistic, permutation_type="pairings", n_resamples=np.inf
        )
        assert found.p == pytest.approx(exact.pvalue)


def test_by_hand():
    perfect = association(np.arange(5), 10 - np.arange(5))
    assert (perfect.rho, perfect.p) == (pytest.approx(-1), pytest.approx(2 / 120)) and perfect.significant
    four = association(np.arange(4), np.array([0, 1, 3, 2]))
    assert (four.smallest_p, four.decidable) == (pytest.approx(2 / 24), False)
    assert association(np.arange(3), np.ones(3)) is None and association(np.arange(2), np.arange(2)) is None


def test_ties_count_as_ties():
    found = association(np.array([1, 1, 2, 2, 3]), np.array([0, 0, 1, 1, 2]))
    assert found.rho == pytest.approx(1) and found.p == pytest.approx(4 / 120)  # 2 x 2 orders are this one


@pytest.mark.parametrize("n", [6, 12])
def test_what_does_not_go_together_is_found_at_most_5_times_in_100(n):
    rng = np.random.default_rng(n)
    found = np.mean([association(rng.normal(size=n), rng.normal(size=n)).significant for _ in range(500)])
    assert 0.02 < found < 0.075


def test_levels_are_relabelled_one_factor_at_a_time_by_hand():
    """2 x 3 sources: the p of their 2! 3! relabellings, written out."""
    levels, rng = crossed(2, 3), np.random.default_rng(0)
    measure, gain = rng.normal(size=6), rng.normal(size=6)
    rho = stats.spearmanr(measure, gain).statistic
    others = [
        stats.spearmanr(measure, gain.reshape(2, 3)[list(a)][:, list(b)].ravel()).statistic
        for a in itertools.permutations(range(2))
        for b in itertools.permutations(range(3))
    ]
    assert association(measure, gain, levels).p == pytest.approx(np.mean(np.abs(others) >= abs(rho) - 1e-9))


@pytest.mark.parametrize("sizes", [(3, 2), (4, 3), (2, 2, 3)])
def test_the_smallest_p_is_that_of_gains_in_the_order_of_the_measure(sizes):
    levels = crossed(*sizes)
    measure = np.random.default_rng(1).normal(size=math.prod(sizes))
    found = association(measure, measure, levels)
    assert found.p == found.smallest_p >= 1 / math.prod(map(math.factorial, sizes))
    alone = association(np.asarray(levels["a"]), measure, levels)  # the other factors' relabellings change nothing
    assert alone.smallest_p >= math.prod(map(math.factorial, sizes[1:])) / math.prod(map(math.factorial, sizes))


@pytest.mark.parametrize("sizes", [(3, 2), (5, 2), (4, 3)])
def test_a_measure_that_is_clustered_as_the_gains_are_is_found_at_most_5_times_in_100(sizes):
    """Were the sources taken to be exchangeable, it would be found two times in ten or more."""
    rng, levels, found = np.random.default_rng(len(sizes)), crossed(*sizes), []
    for _ in range(400):
        measure, gain = clustered(rng, levels, "a"), clustered(rng, levels, "a")
        found.append([association(measure, gain, given).significant for given in (levels, None)])
    within, as_exchangeable = np.mean(found, axis=0)
    assert within < 0.075 and as_exchangeable > 0.15


def test_more_relabellings_than_are_counted_are_drawn():
    levels, rng = crossed(6, 5), np.random.default_rng(0)
    measure, other = clustered(rng, levels, "a"), clustered(rng, levels, "a")
    assert association(measure, measure, levels).p < 0.01
    drawn = association(measure, other, levels)
    means = np.array([np.reshape(x, (6, 5)).mean(1) for x in (measure, other)])
    assert drawn.p == pytest.approx(association(*means).p, abs=0.1)  # six units, by either count


def test_a_source_beside_the_combinations_of_the_others_is_left_out():
    levels = {name: [*column, 0] for name, column in crossed(4, 2).items()} | {"blur": [0] * 8 + [5]}
    assert comparable(levels).tolist() == [True] * 8 + [False]
    assert comparable(crossed(3, 3)).all() and comparable({"a": [0, 1, 2, 3]}).all()
    two_alike = {"name": ["digits", "digits", "textures", "faces"], "half": ["A", "B", np.nan, np.nan]}
    assert comparable(two_alike).tolist() == [False, True, True, True]


def test_sources_to_which_a_factor_does_not_apply_share_nothing():
    levels = {"name": list("abcdef"), "half": ["A", "B", *[np.nan] * 4]}
    assert association(np.arange(6), np.arange(6), levels).p == pytest.approx(2 / 720)


def test_several_measures_are_one_family():
    measures = [np.arange(6), np.array([0, 1, 2, 3, 5, 4])]
    alone = [association(m, np.arange(6.0)) for m in measures]
    family = corrected(alone)
    assert [a.corrected_p for a in family] == pytest.approx([2 * alone[0].p, max(2 * alone[0].p, alone[1].p)])
    assert [a.smallest_corrected_p for a in family] == pytest.approx([2 * 2 / 720] * 2)
