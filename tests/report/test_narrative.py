"""Differences and what they do not rule out, in words."""

import re
from dataclasses import replace

import numpy as np
import pytest
from tests.report.made import no_graft, rows, runs_of

from layergraft.report.findings import find
from layergraft.report.narrative import describe_bound, describe_difference, sentences
from layergraft.stats import mean_difference

SMALL, LARGE = [0.2, -0.2, 0.1, -0.1, 0.0], [-3.0, -2.0, -2.5, -3.5, -2.0]
SURE = [-0.5, -0.4, -0.6, -0.5, -0.4]  # significant, and within a point of 0
WIDE = [4.0, -6.0, 2.0, -3.0, 1.0]


@pytest.mark.parametrize(
    "deltas, margin, words",
    [
        (SMALL, None, r"not significant \(n = 5; costs at most 0\.2; minimum detectable difference \S+ at 80% power\)"),
        (SMALL, 1.0, r"equivalent within ±1 \(n = 5; costs at most 0\.2\)"),
        (SURE, 1.0, r"significant, and equivalent within ±1 \(n = 5; costs at most 0\.6\)"),
        (
            WIDE,
            1.0,
            r"not determined: neither significant nor equivalent within ±1 \(n = 5; costs at most \S+; minimum ",
        ),
    ],
)
def test_what_is_not_significant_says_what_is_ruled_out(deltas, margin, words):
    assert re.search(words, describe_difference(replace(mean_difference(deltas), margin=margin)))


def test_a_significant_difference_is_told_as_it_is():
    for margin in (None, 1.0):
        assert describe_difference(replace(mean_difference(LARGE), margin=margin)) == str(mean_difference(LARGE))


def test_a_cost_is_more_of_what_is_better_low_and_nothing_is_one_where_neither_way_is_better():
    found = mean_difference(np.array(SMALL) + 0.3)
    assert describe_bound(found, "test/acc") == ["costs at most 0.0"]
    assert describe_bound(found, "test/loss") == [f"costs at most {found.in_digits(found.most(1), up=True)}"]
    assert describe_bound(found, "drift") == []


def test_the_bound_is_rounded_up():
    assert mean_difference([1.0, 2.0, 3.0]).in_digits(1.21, up=True) == "1.3"


def test_the_report_counts_what_is_equivalent_and_what_is_not_determined():
    def arm(strategy, deltas):
        return rows({s: 50 + s + delta for s, delta in enumerate(deltas)}, strategy=strategy)

    arms = {"full": SMALL, "freeze": LARGE, "thaw": WIDE}
    runs = runs_of(no_graft({s: 50 + s for s in range(5)}), *(arm(*pair) for pair in arms.items()))
    runs.contrasts = {
        name: {"of": [f"+strategy={name}", "-donor=none"], "metric": "test/acc", "margin": 1.0} for name in arms
    }
    said = " ".join(sentences(find(runs)))
    assert (
        "Of 3 contrasts with a margin: 1 equivalent within it (full ±1, costs at most 0.2), 1 not equivalent but "
        in said
    )
    assert "1 not determined (thaw ±1, costs at most" in said
    runs.contrasts = {"full": {"of": ["+strategy=full", "-donor=none"], "metric": "test/acc"}}
    assert "equivalent" not in " ".join(sentences(find(runs)))
