"""Seeds until precise: the rule by hand, and what the interval covers where it stops."""

import math

import numpy as np
import pytest
from benchmarks.precision import WIDTHS, as_the_package, by, covered, spreads, stops
from scipy import stats

from layergraft.stats import mean_difference, seeds_to_add, widening


def test_as_many_as_the_spread_asks_for():
    deltas = [1.0, -1.0, 1.0, -1.0, 0.5, -0.5, 0.5, -0.5]
    spread = np.std(deltas, ddof=1)
    needed = next(n for n in range(9, 100) if stats.t.ppf(0.975, n - 1) * widening(n) * spread / math.sqrt(n) <= 0.6)
    assert seeds_to_add(mean_difference(deltas), 0.6, 100) == needed - 8 > 1
    assert seeds_to_add(mean_difference(deltas), 0.01, 100) == 8  # no more than there are
    assert (
        seeds_to_add(mean_difference(deltas), 0.01, 11) == 3
        and seeds_to_add(mean_difference(deltas), 0.01, 8) == seeds_to_add(mean_difference(deltas), 0.01, 7) == 0
    )


@pytest.mark.parametrize("n", [3, 5, 20])
def test_none_where_the_widened_interval_is_within_what_is_asked(n):
    deltas = np.random.default_rng(n).normal(size=n)
    reached = mean_difference(deltas, widening(n)).half_width
    assert (
        seeds_to_add(mean_difference(deltas), reached * 1.001, 50) == 0
        and seeds_to_add(mean_difference(deltas), reached * 0.999, 50) >= 1
    )


def test_the_mean_decides_nothing():
    deltas = np.random.default_rng(0).normal(size=6)
    assert len({seeds_to_add(mean_difference(deltas + shift), 0.8, 50) for shift in (-100, 0, 0.5, 100)}) == 1


def test_seeds_that_tell_nothing_of_the_spread_add_one():
    assert seeds_to_add(mean_difference([2.0]), 1.0, 10) == seeds_to_add(mean_difference([0.5, 0.5, 0.5]), 1.0, 10) == 1


def test_the_simulation_has_the_rule_of_the_package():
    x_SN = np.random.default_rng(1).normal(size=(40, 50))
    for width, start in ((0.4, 3), (0.75, 5), (1.5, 3)):
        simulated = stops(spreads(x_SN)[1], width, start, widening)
        assert simulated.tolist() == [as_the_package(x_N, width, start) for x_N in x_SN]


@pytest.mark.parametrize("start", [3, 5, 8])
def test_the_interval_covers_what_it_says_where_its_width_decided_on_n(start):
    """Without the widening, fewer than 92 of 100 from 3 seeds on."""
    x_SN = np.random.default_rng(start).normal(size=(8000, 50))
    spread_SN = spreads(x_SN)[1]
    rates = [covered(x_SN, stops(spread_SN, width, start, widening), widening).mean() for width in WIDTHS]
    assert min(rates) > 0.94
    if start == 3:
        plain = [covered(x_SN, stops(spread_SN, width, start, by(0)), by(0)).mean() for width in WIDTHS]
        assert min(plain) < 0.92
