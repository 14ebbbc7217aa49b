"""Advice from a table of figures: the rounds, who goes on, and what the last round is said to show."""

import numpy as np
import pytest

from layergraft.report.recommendation import Round, advise, cost, in_lines, rounds


def test_rounds_halve_the_length_back_and_cut_by_three():
    assert rounds(18, 3, epochs=8, seeds=5, first=0) == [
        Round(2, (5,), 18),
        Round(4, (5,), 6),
        Round(8, (0, 1, 2, 3, 4), 3),
    ]
    assert rounds(2, 3, epochs=8, seeds=2, first=7) == [Round(8, (7, 8), 2)]
    assert rounds(4, 1, epochs=1, seeds=2, first=0)[0] == Round(1, (2,), 4)  # no round is shorter than an epoch
    assert [r.epochs for r in rounds(18, 3, epochs=4, seeds=2, first=0, shortest=2)] == [2, 2, 4]


@pytest.mark.parametrize("arms", [2, 5, 18, 100])
@pytest.mark.parametrize("finalists", [1, 3])
def test_no_round_shares_the_finalists_seeds_and_arms_only_leave(arms, finalists):
    *before, last = rounds(arms, finalists, epochs=10, seeds=3, first=4)
    assert all(set(r.seeds).isdisjoint(last.seeds) for r in before)
    counts = [r.num_arms for r in before] + [last.num_arms]
    assert counts == sorted(counts, reverse=True) and counts[0] == arms and last.num_arms == min(arms, finalists)


def test_cost_counts_the_host_without_a_donor():
    planned = [Round(2, (5,), 6), Round(4, (0, 1), 3)]
    assert cost(planned, epochs=4) == (2 * 6 + 4 * 2 * 3 + 4 * 2) / 4


VAL = np.array([[80.0, 82.0, 81.0, 80.0], [60.0, 62.0, 61.0, 60.0]])


def test_a_clear_gain_is_said_to_help():
    test = VAL - 1 + np.array([[0.0], [0.5]]) * [0, 1, -1, 0]
    found = advise(VAL, test, np.array([70.0, 72.5, 70.5, 70.0]))
    assert found.arm == 0 and found.gain.significant and found.gain.mean == pytest.approx(9.0, abs=0.5)
    lines = in_lines(found, ["late freeze", "early full"], seeds=4, epochs=8)
    assert lines[0] == "take late freeze: test accuracy 79.8% after 8 epochs (mean of 4 seeds)"
    assert lines[1].startswith("the donor helps: compared with the host without it +9.")
    assert (
        lines[2].startswith("early full, compared with the arm to take: -20.0 ±") and "not significant" not in lines[2]
    )


def test_a_donor_that_hurts_is_better_left_out():
    found = advise(VAL, VAL, np.array([90.0, 91.0, 90.5, 89.0]))
    assert "leave the donor out (donor=none): compared with" in in_lines(found, ["a", "b"], 4, 8)[1]


def test_a_gain_within_the_spread_is_not_significant():
    found = advise(VAL, VAL, np.array([60.0, 100.0, 79.0, 84.0]))
    assert not found.gain.significant
    assert in_lines(found, ["a", "b"], 4, 8)[1].startswith("whether the donor helps is not known: compared with")


def test_without_a_run_without_a_donor_nothing_is_claimed():
    found = advise(VAL, VAL, np.full(4, np.nan))
    assert (
        in_lines(found, ["a", "b"], 4, 8)[1] == "whether the donor helps is not known: no run without it was completed"
    )


def test_the_gain_is_that_of_arms_picked_on_other_seeds():
    """Two arms without a difference, each lucky on one seed: taking the luckier would show a gain where there is none."""
    val = np.array([[60.0, 50.0, 50.0, 50.0], [50.0, 60.0, 50.0, 50.0]])
    found = advise(val, val, np.full(4, 52.5))
    assert found.gain.mean < 0
