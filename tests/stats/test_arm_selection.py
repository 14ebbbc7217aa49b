"""The best of several arms: what picking it gains, by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from layergraft.stats import gain_of_picking, mean_difference, pick
from layergraft.stats.arm_selection import wider


def simulated(rng, num_seeds, means, noise):
    """Validation accuracies and test gains; both share the noise of training, as those of a run do."""
    training = rng.normal(0, 1, (num_seeds, len(means)))
    val = means + training + rng.normal(0, noise, training.shape)
    return val, means + training + rng.normal(0, 0.5, training.shape) - rng.normal(0, 0.5, (num_seeds, 1))


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize("spread, noise", [(0.0, 1.2), (0.5, 0.5), (1.5, 1.2)])
def test_the_gain_of_the_picked_arm_is_not_inflated_and_its_interval_covers(num_seeds, spread, noise):
    rng, means = np.random.default_rng(num_seeds), np.linspace(0, spread, 6)
    errors, naive, covered = [], [], 0
    for _ in range(3000):
        val, gain = simulated(rng, num_seeds, means, noise)
        best, picks = pick(val)
        found = gain_of_picking(gain, picks)
        errors.append(found.mean - means[best])
        naive.append(gain[:, best].mean() - means[best])
        covered += abs(errors[-1]) <= found.half_width
    assert abs(np.mean(errors)) < 0.1 < 0.15 < np.mean(naive)  # what picking by validation alone promises too much
    assert covered / 3000 >= 0.94


def test_by_hand():
    val = np.array([[1.0, 2.0], [1.0, 3.0], [5.0, 4.0]])
    gain = np.array([[0.1, 0.2], [0.3, 0.5], [0.7, 0.9]])
    # All seeds: column 1 (9 to 7). Without seed 0: 7 to 6, the second; without 1: 6 to 6, the first; without 2: 5 to 2.
    best, picks = pick(val)
    assert (best, picks.tolist()) == (1, [1, 0, 1])
    found = gain_of_picking(gain, picks)
    picked = np.array([0.2, 0.3, 0.9])
    assert found.mean == pytest.approx(picked.mean())
    half = stats.t.ppf(0.975, 2) * picked.std(ddof=1) / math.sqrt(3) * wider(2)
    assert found.half_width == pytest.approx(half)


def test_a_seed_without_a_gain_does_not_count():
    gain = np.array([[1.0, 9.0], [2.0, 9.0], [np.nan, 9.0]])
    found = gain_of_picking(gain, np.array([0, 0, 0]))
    assert (found.mean, found.n) == (1.5, 2) and gain_of_picking(gain, np.array([1, 1, 1])).n == 3
    assert gain_of_picking(np.full((2, 1), np.nan), np.array([0, 0])) is None


def test_one_arm_is_a_paired_difference_and_one_seed_tells_nothing():
    gain = np.array([[1.0], [2.0], [4.0]])
    assert gain_of_picking(gain, pick(gain)[1]) == mean_difference(gain[:, 0])
    best, picks = pick(np.array([[1.0, 2.0]]))
    one = gain_of_picking(np.array([[3.0, 5.0]]), picks)
    assert (best, one.mean, one.half_width) == (1, 5.0, math.inf)
