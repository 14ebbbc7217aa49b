"""The best of several arms: what picking it gains, by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from layergraft.stats import pick


def simulated(rng, num_seeds, means):
    """Validation accuracies and test gains; both share the noise of training, as those of a run do."""
    training = rng.normal(0, 1, (num_seeds, len(means)))
    val = means + training + rng.normal(0, 1.2, training.shape)
    return val, means + training + rng.normal(0, 0.5, training.shape)


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.5])
def test_the_gain_of_the_picked_arm_is_not_inflated_and_its_interval_covers(num_seeds, spread):
    rng, means = np.random.default_rng(num_seeds), np.linspace(0, spread, 6)
    errors, naive, covered = [], [], 0
    for _ in range(3000):
        val, gain = simulated(rng, num_seeds, means)
        found = pick(val, gain)
        errors.append(found.gain.mean - means[found.column])
        naive.append(gain[:, found.column].mean() - means[found.column])
        covered += abs(errors[-1]) <= found.gain.half_width
    assert abs(np.mean(errors)) < 0.1 < 0.15 < np.mean(naive)  # what picking by validation alone promises too much
    assert 0.93 <= covered / 3000 <= 0.98


def test_by_hand():
    val = np.array([[1.0, 2.0], [1.0, 3.0], [5.0, 4.0]])
    gain = np.array([[0.1, 0.2], [0.3, 0.5], [0.7, 0.9]])
    found = pick(
        val, gain
    )  # all seeds: column 1 (9 to 7); without seed 0: 7 to 6, without 1: 6 to 6, without 2: 5 to 2
    assert (found.column, found.agreement) == (1, 2)
    picked = np.array([0.2, 0.3, 0.9])  # of the first seed's column 1, a tie's first column, column 1
    assert found.gain.mean == pytest.approx(picked.mean())
    half = stats.t.ppf(0.975, 2) * picked.std(ddof=1) / math.sqrt(3) * 1.25
    assert found.gain.half_width == pytest.approx(half)


def test_one_arm_is_a_paired_difference_and_one_seed_tells_nothing():
    gain = np.array([[1.0], [2.0], [4.0]])
    assert pick(gain, gain).gain.mean == pytest.approx(7 / 3)
    one = pick(np.array([[1.0, 2.0]]), np.array([[3.0, 5.0]]))
    assert (one.column, one.gain.mean, one.gain.half_width) == (1, 5.0, math.inf)
