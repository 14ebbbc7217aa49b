"""What each arm is charged with, and what it reaches in the time of the cheapest, by hand."""

import math

import pandas as pd
import pytest
from tests.report.made import design_of, no_graft, rows

from layergraft.report.compute import charged, compute

SECONDS = {"images": 100, "fit_seconds": 10.0, "pretraining_images": 50, "pretraining_seconds": 4.0}


def _arms():
    with_donor = SECONDS | {"donor_images": 30, "donor_seconds": 6.0}
    without = SECONDS | {"donor_images": 0, "donor_seconds": 0.0}
    groups = (rows({0: 80, 1: 82}), no_graft({0: 90, 1: 90}))
    return design_of(
        *([row | cost for row in group] for group, cost in zip(groups, (with_donor, without), strict=True))
    )


TUNED = pd.DataFrame([
    {"setting": "h", "site": "early", "arm": "full, trained", "images": 400, "seconds": 8.0},
    {"setting": "h", "site": "-", "arm": "no graft", "images": 200, "seconds": 2.0},
])  # fmt: skip


def test_tuning_is_shared_out_among_the_seeds():
    found = charged(_arms().runs, TUNED)
    per_run = found.set_index("arm")[["tuning_images", "tuning_seconds"]].drop_duplicates().T.to_dict("list")
    assert per_run == {"full, trained": [200, 4.0], "no graft": [100, 1.0]}


def test_each_part_has_its_figures():
    found = compute(_arms(), TUNED, {}).set_index("arm")
    assert found["images"].to_dict() == {"full, trained": [100, 30, 50, 200], "no graft": [100, 0, 50, 100]}
    assert found.seconds.to_dict() == {"full, trained": [10, 6, 4, 4], "no graft": [10, 0, 4, 1]}


def test_what_an_arm_reaches_in_the_time_of_the_cheapest():
    """The cheapest takes 15 s in all; 14 s of the other's are gone before its training begins, so it has 1 of 10 s: 1 epoch of 10."""
    design = _arms()
    curves = {key: [float(epoch) for epoch in range(1, 11)] for key in design.runs.key}
    found = compute(design, TUNED, curves).set_index("arm")
    assert found.after.to_dict() == {"full, trained": 10, "no graft": 10}
    assert found.at_budget.to_dict() == {"full, trained": 1, "no graft": 10}


def test_an_arm_that_would_not_have_begun_has_no_figure():
    design = _arms()
    design.runs.loc[design.runs.donor == "trained", "donor_seconds"] = 60.0
    found = compute(design, pd.DataFrame(), {key: [1.0, 2.0] for key in design.runs.key}).set_index("arm")
    assert math.isnan(found.at_budget["full, trained"]) and found.at_budget["no graft"] == 2.0


def test_without_curves_there_is_nothing_to_read():
    assert compute(_arms(), pd.DataFrame(), {}).at_budget.isna().all()


@pytest.mark.parametrize("unit", ["images", "seconds"])
def test_without_tuning_nothing_is_charged_for_it(unit):
    assert (charged(_arms().runs, pd.DataFrame())[f"tuning_{unit}"] == 0).all()
