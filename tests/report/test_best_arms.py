"""The best way to load the layer: which arm is picked, over which seeds, and what is read of it."""

import pytest
from tests.report.made import design_of, no_graft, rows

from layergraft.report.best_arms import answers
from layergraft.report.contrasts import paired


def arm(strategy, test, val, **axes):
    found = rows(test, strategy=strategy, **axes)
    return [row | {"val/acc": val[row["seed"]] if isinstance(val, dict) else val} for row in found]


def test_the_best_arm_is_picked_by_validation_among_donors_that_learned():
    found = design_of(
        no_graft({0: 50, 1: 51, 2: 52}), arm("freeze", {0: 60, 1: 62, 2: 61}, 10), arm("full", {0: 55, 1: 56, 2: 54}, 90),
        arm("full", {0: 40, 1: 41, 2: 45}, 99, donor="random"), arm("full", {0: 40, 1: 41, 2: 45}, 99, donor="self"),
        arm("freeze", {0: 10, 1: 10, 2: 10}, 99, donor="random"),
    )  # fmt: skip
    (only,) = answers(found)
    assert (only.arm, only.num_arms, only.site) == ("full, trained", 2, "early") and only.agreed
    assert list(only.gains) == ["no graft", "random layer"]
    assert only.gains["no graft"].mean == pytest.approx((5 + 5 + 2) / 3)
    assert only.gains["random layer"].mean == pytest.approx((15 + 15 + 9) / 3)
    p = [gain.p for gain in only.gains.values()]  # both of one family
    assert [gain.corrected_p for gain in only.gains.values()] == pytest.approx([max(p[0], 2 * p[1]), 2 * p[1]])


def test_controls_are_known_whatever_else_of_theirs_was_swept():
    def with_surgery(calibrate):
        return [
            rows({0: 55, 1: 57}, strategy="freeze", **{"surgery.calibrate": calibrate}),
            rows({0: 51, 1: 52}, strategy="freeze", donor="random", **{"surgery.calibrate": calibrate}),
        ]

    found = design_of(no_graft({0: 50, 1: 50}), *with_surgery("none"), *with_surgery("moments"))
    (answer,) = answers(found)
    assert answer.num_arms == 2 and list(answer.gains) == ["no graft", "random layer"]
    assert answer.gains["random layer"].mean == pytest.approx(4.5)
    assert set(answer.axes) == {"site", "host"}  # what the arm has of its own does not hide it


def test_a_place_without_one_control_keeps_the_other():
    found = design_of(
        no_graft({0: 50, 1: 51}), rows({0: 55, 1: 57}, strategy="freeze", site="a"), rows({0: 55, 1: 58}, strategy="freeze", site="b"),
        rows({0: 40, 1: 42}, strategy="freeze", donor="random", site="b"),
    )  # fmt: skip
    first, second = answers(found)
    assert first.gains["random layer"] is None and first.gains["no graft"].mean == 5.5
    assert second.gains["random layer"].mean == pytest.approx(15.5)


def test_a_random_layer_is_a_control_of_its_own_strategy_alone():
    """`full, trained` less `freeze, random` differs in two things at once."""
    frozen = arm("freeze", {0: 40, 1: 42}, 1, donor="random")
    groups = no_graft({0: 50, 1: 51}), arm("freeze", {0: 55, 1: 57}, 10), frozen
    for other, gain in (([], 15), (arm("full", {0: 60, 1: 62}, 90), None)):
        (answer,) = answers(design_of(*groups, other))
        found = answer.gains["random layer"]
        assert (found and found.mean) == gain and answer.gains["no graft"] is not None
    by_random = paired(design_of(*groups, arm("full", {0: 60, 1: 62}, 90)), "random layer", "test/acc")
    assert by_random.groupby("arm").gain.count().to_dict() == {"freeze, trained": 2, "full, trained": 0, "no graft": 0}


def test_a_seed_that_an_arm_lacks_is_told_and_one_that_a_control_lacks_changes_no_pick():
    freeze = arm("freeze", {0: 55, 1: 58, 2: 57}, {0: 10, 1: 90, 2: 80})
    full = arm("full", {0: 55, 1: 57, 2: 56, 3: 55}, {0: 60, 1: 60, 2: 55, 3: 55})
    (answer,) = answers(design_of(no_graft({0: 50, 1: 51}), freeze, full))
    assert answer.lost == {"arms": (3,), "no graft": (2,)} and answer.gains["no graft"].n == 2
    assert answer.arm == "freeze, trained"  # 180 to 175, of the seeds 0, 1 and 2
    # Without seed 0: 170 to 115, freeze; without 1: 90 to 115, full; without 2: 100 to 120, full.
    assert answer.picks == {"full, trained": 2, "freeze, trained": 1} and not answer.agreed
    assert answer.gains["no graft"].mean == pytest.approx((5 + 6) / 2)


def test_an_arm_that_few_seeds_have_is_no_candidate_and_a_place_without_a_whole_seed_is_told():
    many = dict.fromkeys(range(6), 55)
    (answer,) = answers(design_of(no_graft(many), rows(many, strategy="freeze"), rows({0: 99}, strategy="full")))
    assert (answer.arm, answer.left_out, answer.gains["no graft"].n) == ("freeze, trained", ("full, trained",), 6)
    apart = design_of(no_graft(many), rows({0: 1, 1: 1}, strategy="freeze"), rows({2: 1, 3: 1}, strategy="full"))
    (answer,) = answers(apart)
    assert answer.arm is None and answer.lost["arms"] == (0, 1, 2, 3) and answer.gains == {"no graft": None}


def test_a_control_that_not_every_picked_arm_has_is_none():
    """Of the seeds that are left those would be gone that pick the other arm."""

    def with_surgery(calibrate, val):
        return arm("freeze", {0: 55, 1: 57, 2: 56}, val, **{"surgery.calibrate": calibrate})

    none, moments = with_surgery("none", {0: 9, 1: 1, 2: 5}), with_surgery("moments", {0: 1, 1: 9, 2: 6})
    random = rows({0: 50, 1: 51, 2: 52}, strategy="freeze", donor="random", **{"surgery.calibrate": "none"})
    (answer,) = answers(design_of(no_graft({0: 50, 1: 51, 2: 50}), none, moments, random))
    assert len(answer.picks) == 2 and answer.gains["random layer"] is None and answer.gains["no graft"].n == 3
