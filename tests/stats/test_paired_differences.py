"""Paired differences: against scipy and statsmodels, against numbers worked out by hand, and by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from layergraft.stats import complete, difference, holm, mean_difference, together


def by_seed(values):
    return dict(enumerate(values))


def test_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, 6), rng.normal(0, 2, 6)
    ours, theirs = difference(by_seed(a), by_seed(b)), stats.ttest_rel(a, b)
    low, high = theirs.confidence_interval(0.95)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.mean - ours.half_width, ours.mean + ours.half_width) == pytest.approx((low, high))
    assert ours.n == 6 and ours.significant == (theirs.pvalue < 0.05)


def test_pairs_only_what_both_have():
    found = difference({0: 3.0, 1: 5.0, 7: 100.0}, {0: 1.0, 1: 1.0, 8: -100.0})
    assert (found.mean, found.n) == (3.0, 2)  # differences 2 and 4
    assert difference({0: 1.0}, {1: 1.0}) is None


def test_one_pair_resolves_nothing():
    one = difference({0: 90.0}, {0: 10.0})
    assert (one.mean, one.n, one.p, one.half_width, one.significant) == (80.0, 1, 1.0, math.inf, False)


def test_pairs_without_spread_resolve_nothing():
    same, shifted = (
        difference(by_seed([1, 1]), by_seed([1, 1])),
        difference(by_seed([50.0, 60.1]), by_seed([49.0, 59.1])),
    )
    assert (same.mean, same.half_width, same.significant, same.p) == (0.0, math.inf, False, 1.0)
    assert (round(shifted.mean, 9), shifted.half_width, shifted.significant, shifted.p) == (1.0, math.inf, False, 1.0)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_what_it_says(n):
    rng = np.random.default_rng(n)
    covered = 0
    for _ in range(4000):
        found = difference(by_seed(rng.normal(0.3, 1, n)), by_seed(np.zeros(n)))
        covered += abs(found.mean - 0.3) <= found.half_width
    assert 0.94 < covered / 4000 < 0.96


@pytest.mark.parametrize("n", [3, 5, 10])
def test_an_arm_against_itself_differs_five_times_in_100(n):
    """A/A: the same arm under other seeds, with the noise of hosts that both share."""
    rng = np.random.default_rng(n)
    found = 0
    for _ in range(4000):
        host, a, b = rng.normal(60, 5, n), rng.normal(0, 1, n), rng.normal(0, 1, n)
        found += difference(by_seed(host + a), by_seed(host + b)).significant
    assert 0.04 < found / 4000 < 0.06


def test_the_same_runs_have_the_same_interval():
    rng = np.random.default_rng(0)
    a, b = by_seed(rng.normal(size=5)), by_seed(rng.normal(size=5))
    assert difference(a, b) == difference(a, b) == difference(dict(reversed(a.items())), b)


def test_agrees_with_statsmodels():
    rng = np.random.default_rng(1)
    deltas = rng.normal(0.4, 1, 7)
    ours, theirs = mean_difference(deltas), DescrStatsW(deltas)
    assert (ours.mean - ours.half_width, ours.mean + ours.half_width) == pytest.approx(theirs.tconfint_mean(0.05))
    assert ours.p == pytest.approx(theirs.ttest_mean(0)[1])
    p = rng.uniform(0, 0.2, 20)
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


@pytest.mark.parametrize("n", [3, 5])
def test_accuracies_in_steps_are_covered_too(n):
    """A test set of 100 images: seeds often agree to the last image, which tells nothing of their spread."""
    rng = np.random.default_rng(n)
    found = [mean_difference(np.round(rng.normal(0.3, 0.3, n))) for _ in range(4000)]
    assert np.mean([abs(d.mean - 0.3) <= d.half_width for d in found]) > 0.95


def test_differences_tested_together_are_resolved_together():
    rng = np.random.default_rng(2)
    alone = [mean_difference(rng.normal(shift, 1, 6)) for shift in (0.9, 3.0, 0.0)]
    family = together(alone)
    corrected = multipletests([d.p for d in alone], method="holm")[1]
    assert [d.corrected_p for d in family] == pytest.approx(corrected)
    assert [d.significant for d in family] == list(corrected < 0.05)
    assert [d.half_width for d in family] == [d.half_width for d in alone]  # of each alone
    assert all(d.detectable > a.detectable for d, a in zip(family, alone, strict=True))


def test_equivalence_and_the_bound_agree_with_one_sided_tests_of_scipy():
    rng = np.random.default_rng(3)
    for n, margin in ((3, 0.5), (5, 1.0), (12, 2.0)):
        deltas = rng.normal(0.3, 1, n)
        found = replace(mean_difference(deltas), margin=margin)
        above = stats.ttest_1samp(deltas, -margin, alternative="greater")
        below = stats.ttest_1samp(deltas, margin, alternative="less")
        assert found.equivalence_p == pytest.approx(max(above.pvalue, below.pvalue))
        assert found.most(-1) == pytest.approx(max(0, -above.confidence_interval(0.95).low))
        assert found.most(1) == pytest.approx(max(0, below.confidence_interval(0.95).high))


@pytest.mark.parametrize("n", [3, 10])
def test_arms_that_differ_by_the_margin_are_called_equivalent_at_most_5_times_in_100(n):
    x_SN = np.random.default_rng(n).normal(1, 0.2, (2000, n))
    found = [replace(mean_difference(x), margin=1.0).equivalent for x in x_SN]
    assert 0.04 < np.mean(found) < 0.06
    assert np.mean([replace(mean_difference(x - 1), margin=1.0).equivalent for x in x_SN]) > 0.9


def test_nothing_is_equivalent_without_a_margin_or_a_spread():
    assert mean_difference([0.01, -0.01, 0.0]).equivalence_p is None and not mean_difference([0.01, -0.01]).equivalent
    agreed = replace(mean_difference([0.0, 0.0]), margin=5.0)
    assert (agreed.equivalence_p, agreed.equivalent, agreed.most(-1)) == (1.0, False, math.inf)


def test_tests_of_equivalence_are_a_family_of_their_own():
    rng = np.random.default_rng(4)
    alone = [replace(mean_difference(rng.normal(0, 1, 8)), margin=margin) for margin in (1.0, None, 0.8)]
    family = together(alone)
    expected = holm([alone[0].equivalence_p, alone[2].equivalence_p])
    assert [family[0].corrected_equivalence_p, family[2].corrected_equivalence_p] == expected
    assert family[1].corrected_equivalence_p is None and not family[1].equivalent
    assert [d.corrected_p for d in family] == holm([d.p for d in alone])


def test_seeds_that_lack_a_cell_and_cells_that_most_seeds_lack():
    gap = np.nan
    values_SC = np.array([[1, 2, 3], [1, gap, gap], [1, 2, gap], [gap, gap, gap]], float)
    seeds_S, cells_C = complete(values_SC)
    assert (seeds_S.tolist(), cells_C.tolist()) == ([True, False, True, False], [True, True, False])
    seeds_S, _ = complete(np.full((2, 2), gap))
    assert not seeds_S.any()


@pytest.mark.parametrize("n", [3, 5, 10])
def test_detectable_is_found_four_times_in_five(n):
    rng = np.random.default_rng(n)
    centred = rng.normal(0, 1, n)
    centred = (centred - centred.mean()) / centred.std(ddof=1)  # a sample whose spread is the true one, 1
    true = difference(by_seed(centred), by_seed(np.zeros(n))).detectable
    found = sum(difference(by_seed(rng.normal(true, 1, n)), by_seed(np.zeros(n))).significant for _ in range(4000))
    assert 0.78 < found / 4000 < 0.82


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    "deltas, text",
    [
        ([1.0, 2.0, 3.0], "+2.0 ± 2.5"),
        ([0.01, 0.02, 0.03], "+0.02 ± 0.02"),
        ([0.001, 0.0012, 0.0013], "+0.0012 ± 0.0004"),
        ([120.0, 80.0, 100.0], "+100.0 ± 49.7"),
        ([0.0, 0.0], "+0.0 (n = 2)"),
        ([3.0], "+3.0 (n = 1)"),
    ],
)
def test_as_many_decimals_as_the_interval_has(deltas, text):
    assert str(mean_difference(deltas)) == text
