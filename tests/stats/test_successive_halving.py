"""Which candidates are tried on how many seeds, which is taken, and what the choice does to a comparison."""

import numpy as np
import pytest

from layergraft.stats import mean_difference
from layergraft.stats.successive_halving import Rung, num_runs, ranked, rungs

NAN = float("nan")


@pytest.mark.parametrize(
    "candidates, seeds, expected",
    [
        (1, 3, [(1, 3)]),
        (2, 3, [(2, 3)]),
        (3, 3, [(3, 1), (2, 3)]),
        (4, 3, [(4, 1), (2, 3)]),
        (5, 3, [(5, 1), (3, 2), (2, 3)]),
        (8, 3, [(8, 1), (4, 2), (2, 3)]),
        (16, 3, [(16, 1), (8, 2), (4, 3)]),
        (4, 1, [(4, 1)]),
        (4, 5, [(4, 2), (2, 5)]),
    ],
)
def test_half_leave_at_each_rung_and_the_last_knows_every_seed(candidates, seeds, expected):
    assert rungs(candidates, seeds) == [Rung(*pair) for pair in expected]


def test_a_seed_that_was_tried_before_is_not_tried_again():
    assert [num_runs(rungs(number, 3)) for number in (2, 4, 5)] == [2 * 3, 4 + 2 * 2, 5 + 3 + 2]


def test_ranked_by_accuracy_then_loss_then_order():
    acc = np.array([[80, 82], [90, 80], [81, 81], [85, 85], [95, NAN]])
    loss = np.array([[0.5, 0.5], [0.4, 0.4], [0.3, 0.3], [NAN, 0.2], [0.1, 0.1]])
    assert ranked(acc, loss) == [1, 3, 2, 0, 4]


def test_one_with_a_failed_run_comes_last_by_accuracy_alone_too():
    assert ranked(np.array([[50.0, 60.0], [99.0, np.nan], [70.0, 40.0], [80.0, 10.0]])) == [0, 2, 3, 1]


def test_ranked_keeps_the_order_of_equals():
    assert ranked(np.full((3, 2), 50.0), np.ones((3, 2))) == [0, 1, 2]


def _chosen(val_CS, loss_CS):
    left = list(range(len(val_CS)))
    for rung in rungs(len(val_CS), val_CS.shape[1]):
        left = left[: rung.num_candidates]
        order = ranked(val_CS[left, : rung.num_seeds], loss_CS[left, : rung.num_seeds])
        left = [left[index] for index in order]
    return left[0]


def test_the_choice_inflates_nothing():
    """Two arms of eight equal candidates each, whose validation and test share a run's luck: tuned on seeds of its own, an arm gains
    nothing by having been tuned, and intervals cover; chosen on the seeds that are compared, an arm gains by luck alone."""
    rng, num_seeds, found, naive = np.random.default_rng(0), 5, [], []
    for _ in range(1500):
        luck_AC3 = rng.normal(0, 1, (2, 8, 3))
        luck_ACS = rng.normal(0, 1, (2, 8, num_seeds))  # of a run: its validation and its test accuracy have it
        test_ACS = luck_ACS + rng.normal(0, 0.5, luck_ACS.shape)
        arms = [_chosen(luck + rng.normal(0, 0.5, luck.shape), -luck) for luck in luck_AC3]
        found.append(mean_difference(test_ACS[0, arms[0]] - test_ACS[1, arms[1]]))
        lucky = int((luck_ACS[0] + rng.normal(0, 0.5, luck_ACS[0].shape)).mean(1).argmax())
        naive.append(mean_difference(test_ACS[0, lucky] - test_ACS[1, 0]))
    means = np.array([d.mean for d in found])
    assert abs(means.mean()) < 3 * means.std() / len(means) ** 0.5
    assert 0.93 < np.mean([abs(d.mean) < d.half_width for d in found]) < 0.97
    assert np.mean([d.mean for d in naive]) > 0.4


def test_a_candidate_that_is_clearly_better_is_taken():
    rng, better = np.random.default_rng(1), 0
    for _ in range(300):
        val_CS = rng.normal(0, 1, (5, 3)) + np.array([0, 0, 4, 0, 0])[:, None]
        better += _chosen(val_CS, -val_CS) == 2
    assert better > 285
