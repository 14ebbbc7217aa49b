"""Rank correlation over sources: against scipy, by hand, and by simulation."""

import numpy as np
import pytest
from scipy import stats

from layergraft.stats import association
from layergraft.stats.association import corrected


@pytest.mark.parametrize("n", [5, 8, 12])
def test_agrees_with_scipy(n):
    rng = np.random.default_rng(n)
    measure, gain = rng.normal(size=n), rng.normal(size=n)
    found, theirs = association(measure, gain), stats.spearmanr(measure, gain)
    assert found.rho == pytest.approx(theirs.statistic) and found.n == n
    if n > 9:
        assert found.p == pytest.approx(theirs.pvalue)
    elif n == 5:
        exact = stats.permutation_test(
            (measure,), lambda x: stats.spearmanr(x, gain).statistic, permutation_type="pairings", n_resamples=np.inf
        )
        assert found.p == pytest.approx(exact.pvalue)


def test_by_hand():
    perfect = association(np.arange(5), 10 - np.arange(5))
    assert (perfect.rho, perfect.p) == (pytest.approx(-1), pytest.approx(2 / 120)) and perfect.significant
    assert association(np.arange(4), np.arange(4)).p == 1  # 2 of 24 orders: four sources cannot tell
    assert association(np.arange(3), np.ones(3)) is None and association(np.arange(2), np.arange(2)) is None


def test_ties_count_as_ties():
    found = association(np.array([1, 1, 2, 2, 3]), np.array([0, 0, 1, 1, 2]))
    assert found.rho == pytest.approx(1) and found.p == pytest.approx(4 / 120)  # 2 x 2 orders are this one


@pytest.mark.parametrize("n", [6, 12])
def test_what_does_not_go_together_is_found_at_most_5_times_in_100(n):
    rng = np.random.default_rng(n)
    found = np.mean([association(rng.normal(size=n), rng.normal(size=n)).significant for _ in range(1000)])
    assert 0.02 < found < 0.07


def test_several_measures_are_one_family():
    measures = [np.arange(6), np.array([0, 1, 2, 3, 5, 4])]
    alone = [association(m, np.arange(6.0)) for m in measures]
    assert [a.corrected_p for a in corrected(alone)] == pytest.approx([2 * alone[0].p, max(2 * alone[0].p, alone[1].p)])
