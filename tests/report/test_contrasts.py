"""Which arms are compared, in which cells, over which seeds."""

import pytest
from tests.report.made import design_of, no_graft, rows, runs_of

from layergraft.config.metric_registry import recorded
from layergraft.errors import UserError
from layergraft.report.contrasts import between, contrast, gains, named, require_contrasts
from layergraft.stats import difference
from layergraft.store.records import RunRecord


def test_arms_are_paired_by_seed_within_each_cell():
    found = design_of(no_graft({0: 50, 1: 60}), rows({0: 52, 1: 64}, site="early"), rows({0: 51, 1: 59}, site="late"))
    assert found.settings == ["h"] and list(found.runs.site.unique()) == ["-", "early", "late"]
    only = between(found, "full, trained", "no graft")
    assert (only.difference, only.seeds) == (difference({0: 51.5, 1: 61.5}, {0: 50, 1: 60}), (0, 1))
    cells = gains(found, "no graft", "test/acc").set_index("site").difference
    assert (cells["early"].mean, cells["late"].mean) == (3.0, 0.0)


def test_seeds_that_miss_a_cell_do_not_count_and_are_told():
    found = design_of(rows({0: 50, 1: 60, 2: 99}, strategy="freeze"), rows({0: 51, 1: 62}))
    only = between(found, "freeze, trained", "full, trained")
    assert (only.difference.n, only.difference.mean, only.unpaired) == (2, -1.5, (2,))
    split = design_of(no_graft({0: 50, 1: 60}), rows({0: 51, 1: 61}, site="early"), rows({0: 52}, site="late"))
    only = between(split, "full, trained", "no graft")
    assert (only.seeds, only.unpaired) == ((0,), (1,))


def test_conditions_with_signs():
    found = design_of(
        no_graft({0: 50, 1: 52}, **{"host.width": 4}), no_graft({0: 70, 1: 72}, **{"host.width": 16}),
        rows({0: 40, 1: 44}, strategy="freeze", **{"host.width": 4}),
        rows({0: 69, 1: 70}, strategy="freeze", **{"host.width": 16}),
    )  # fmt: skip
    penalty = ["+strategy=freeze,host.width=16", "-donor=none,host.width=16",
               "-strategy=freeze,host.width=4", "+donor=none,host.width=4"]  # fmt: skip
    assert contrast(found, "shrinks", penalty).difference.mean == pytest.approx(((-1 + 10) + (-2 + 8)) / 2)
    plain = contrast(found, "cost", ["+strategy=freeze", "-donor=none"])
    assert (plain.num_cells, plain.difference.mean) == (2, pytest.approx((-10 - 1 - 8 - 2) / 4))


def test_a_condition_compares_like_with_like():
    """Widths that only one side has do not count."""
    found = design_of(
        no_graft({0: 50}, **{"host.width": 4}), rows({0: 60}, **{"host.width": 4}), rows({0: 99}, **{"host.width": 16})
    )
    only = contrast(found, "c", ["+strategy=full", "-donor=none"])
    assert (only.num_cells, only.difference.mean) == (1, 10)


def test_a_source_is_a_setting_which_no_graft_is_in_whatever_it_is():
    found = design_of(
        no_graft({0: 50, 1: 50}), rows({0: 55, 1: 57}, **{"donor.data.half": "A"}), rows({0: 60, 1: 61}, **{"donor.data.half": "B"})
    )  # fmt: skip
    assert found.settings == ["h, donor.data.half=A", "h, donor.data.half=B"]
    cells = gains(found, "no graft", "test/acc").set_index("setting").difference
    assert [cells[name].mean for name in found.settings] == [6, 10.5]
    assert between(found, "full, trained", "no graft").difference.mean == pytest.approx(8.25)


def test_what_else_was_swept_tells_arms_and_settings_apart():
    groups = [rows({0: 1}, **{"optim.lr": lr, "strategy.phases.thaw.epoch": e}) for lr in (0.1, 0.2) for e in (1, 2)]
    found = design_of(*groups, no_graft({0: 1}, **{"optim.lr": 0.1}))
    assert set(found.runs.arm) == {
        "full, trained, phases.thaw.epoch=1",
        "full, trained, phases.thaw.epoch=2",
        "no graft",
    }
    assert set(found.runs.setting) == {"h, optim.lr=0.1", "h, optim.lr=0.2"}


def test_named_contrasts_are_corrected_together_and_what_is_lacking_is_told():
    found = design_of(
        no_graft({0: 50, 1: 52, 2: 51}), rows({0: 53, 1: 56, 2: 55}), rows({0: 50, 1: 53, 2: 50}, strategy="freeze")
    )
    specs = {"a": {"of": ["+strategy=full", "-donor=none"], "metric": "test/acc"},
             "b": {"of": ["+strategy=freeze", "-donor=none"], "metric": "test/acc"},
             "c": {"of": ["+strategy=hybrid", "-donor=none"], "metric": "test/acc"}}  # fmt: skip
    compared, lacking = named(found, specs)
    raw = [c.difference.p for c in compared]
    assert [c.difference.corrected_p for c in compared] == pytest.approx([min(1, 2 * raw[0]), max(raw[1], 2 * raw[0])])
    assert lacking == ["c: unknown strategy among these runs: 'hybrid'. There are: freeze, full"]
    default, _ = named(found, {})
    assert [c.name for c in default] == ["full, trained less no graft", "freeze, trained less no graft"]


@pytest.mark.parametrize(
    "of, metric, message",
    [
        (["+strategy=full"], "test/acc", "as many conditions with"),
        (["+strategy=full", "donor=none"], "test/acc", "must begin with"),
        (["+strategy=full", "-donor=nome"], "test/acc", "did you mean 'none'"),
        (["+strategy=full", "-donor=none"], "test/ac", "unknown metric of 'c': 'test/ac'; did you mean 'test/a"),
        (
            ["+strategy=full", "-donor=none"],
            "drift",
            "unknown metric of 'c': 'drift'. There are: test/acc, val/acc, val/aulc",
        ),
        (["+site=early,seed<0", "-donor=none"], "test/acc", "no completed run has site=early,seed<0"),
    ],
)
def test_what_is_no_contrast_is_refused(of, metric, message):
    with pytest.raises(UserError, match=message):
        contrast(design_of(no_graft({0: 1}), rows({0: 2})), "c", of, metric)


@pytest.mark.parametrize("margin", [0, -1, "much", True, float("inf"), float("nan")])
def test_a_margin_is_a_number_above_0(margin):
    with pytest.raises(
        UserError, match="c: margin must be a number above 0, in the unit of test/acc, or null; given: "
    ):
        contrast(design_of(no_graft({0: 1}), rows({0: 2})), "c", ["+strategy=full", "-donor=none"], margin=margin)


def test_the_margin_of_a_sweep_is_checked_before_any_training():
    from hydra.core.plugins import Plugins

    Plugins.instance()  # imports them anew, once
    from layergraft.sweeps.grid import _contrast

    given = _contrast("c", {"of": ["+seed=0", "-seed=1"], "margin": -1})
    assert _contrast("c", {"of": []}) == {"of": [], "metric": "test/acc", "margin": None}
    with pytest.raises(UserError, match="unknown key of contrast c: 'margn'; did you mean 'margin'"):
        _contrast("c", {"of": [], "margn": 1.0})
    records = [RunRecord("k", "planned", {"donor": "trained", "seed": s}) for s in (0, 1)]
    with pytest.raises(
        UserError, match="contrast c: margin must be a number above 0, in the unit of test/acc, or null"
    ):
        require_contrasts(records, {"c": given}, ["test/acc"])


def test_contrasts_with_a_margin_are_one_family_of_equivalence():
    seeds = range(6)
    found = design_of(
        no_graft({s: 50 + s for s in seeds}), rows({s: 50 + s + 0.1 * (-1) ** s for s in seeds}),
        rows({s: 47 + s + s % 3 for s in seeds}, strategy="freeze"),
    )  # fmt: skip
    specs = {name: {"of": [f"+strategy={name}", "-donor=none"], "metric": "test/acc", "margin": 1.0} for name in ("full", "freeze")}  # fmt: skip
    none = {"of": ["+strategy=full", "-strategy=freeze"], "metric": "test/acc"}  # of a sweep that was before margins
    (full, freeze, bare), _ = named(found, specs | {"bare": none})
    assert full.difference.equivalent and not freeze.difference.equivalent
    assert full.difference.corrected_equivalence_p == pytest.approx(2 * full.difference.equivalence_p)
    assert bare.difference.margin is None and bare.difference.corrected_equivalence_p is None


def test_contrasts_are_checked_against_what_is_planned():
    records = [RunRecord("k", "planned", {"strategy": "full", "site": "early", "host": "h", "donor": "trained", "data": "d", "seed": s}) for s in (0, 1)]  # fmt: skip
    metrics = recorded("ordinal", [75.0])
    with pytest.raises(UserError, match="contrast c: unknown strategy among these runs: 'ful'; did you mean 'full'"):
        require_contrasts(records, {"c": {"of": ["+strategy=ful", "-strategy=full"], "metric": "test/acc"}}, metrics)
    for metric in ("steps_to/75", "test/mae", "val/loss", "drift"):
        require_contrasts(records, {"c": {"of": ["+seed=0", "-seed=1"], "metric": metric}}, metrics)
    for metric in ("steps_to/80", "test/f2", "train/acc"):
        with pytest.raises(UserError, match=f"unknown metric of 'contrast c': '{metric}'.* There are: test/acc"):
            require_contrasts(records, {"c": {"of": ["+seed=0", "-seed=1"], "metric": metric}}, metrics)


def test_a_sweep_without_baseline_compares_every_pair():
    compared, _ = named(design_of(rows({0: 1}), rows({0: 2}, donor="random"), rows({0: 3}, donor="permuted")), {})
    assert len(compared) == 3
    assert not runs_of(rows({0: 1})).swept


def test_none_is_a_value_of_other_axes_than_the_donor():
    def arm(level, donor, calibrate):
        return rows({0: level, 1: level + 1}, donor=donor, **{"surgery.calibrate": calibrate})

    found = design_of(arm(50, "trained", "none"), arm(60, "trained", "batch_norm"), arm(50, "random", "none"))
    only = contrast(found, "c", ["+donor=trained", "-donor=random"])
    assert (only.num_cells, only.difference.mean) == (1, 0.0)


def test_a_cell_without_the_metric_is_left_out_and_named():
    groups = [no_graft({0: 1, 1: 1}), rows({0: 2, 1: 2}, site="early"), rows({0: 2, 1: 3}, site="late")]
    for row in (row for group in groups for row in group):
        row["drift"] = None if row["site"] == "late" else float(row["test/acc"])
    only = contrast(design_of(*groups), "c", ["+strategy=full", "-donor=none"], "drift")
    assert (only.difference.mean, only.seeds, only.num_cells, only.left_out) == (1, (0, 1), 1, ("late",))


def test_a_cell_that_few_seeds_have_does_not_take_the_others_with_it():
    found = design_of(
        no_graft(dict.fromkeys(range(5), 50)),
        rows(dict(enumerate((51, 52, 53, 52, 51))), site="early"),
        rows({0: 90}, site="late"),
    )
    only = between(found, "full, trained", "no graft")
    assert (only.difference.n, only.difference.mean, only.left_out) == (5, pytest.approx(1.8), ("late",))


def test_cells_that_one_side_lacks_are_named():
    found = design_of(
        rows({0: 1, 1: 2}, site="early"), rows({0: 1, 1: 2}, site="late"), rows({0: 0, 1: 0}, strategy="freeze")
    )
    assert between(found, "full, trained", "freeze, trained").left_out == ("late",)


def test_a_condition_of_several_levels_takes_all_of_them_in_every_seed():
    """A seed that lacks the late site would come in with the early one alone."""
    found = design_of(
        no_graft(dict.fromkeys(range(4), 50)), rows(dict.fromkeys(range(4), 60), site="early"), rows(dict.fromkeys(range(3), 40), site="late")
    )  # fmt: skip
    only = contrast(found, "c", ["+site=early|late", "-donor=none"])
    assert (only.difference.mean, only.seeds, only.unpaired) == (0, (0, 1, 2), (3,))


def test_what_was_never_reached_counts_as_all_the_steps_of_the_run():
    groups = [no_graft({0: 1, 1: 1}), rows({0: 2, 1: 2}, site="early")]
    for row in (row for group in groups for row in group):
        row["steps"] = 100
        row["steps_to/90"] = float("inf") if (row["donor"], row["seed"]) == ("none", 1) else 40.0
    only = contrast(design_of(*groups), "c", ["+strategy=full", "-donor=none"], "steps_to/90")
    assert (only.difference.mean, only.never) == ((0 - 60) / 2, 1)


def test_an_arm_is_held_against_its_own_kind_of_a_control():
    name = "strategy.phases.start.train.rest"
    groups = [rows({0: level + gain, 1: level + gain}, strategy="full", donor=donor, site=site, **{name: rate})
              for rate, level in (("1", 50), ("0.1", 70)) for donor, site, gain in (("none", "-", 0), ("trained", "early", 1))]  # fmt: skip
    found = design_of(*groups)
    assert [d.mean for d in gains(found, "no graft", "test/acc").difference] == [1, 1]
    arms = [arm for arm in found.runs.arm.unique() if "trained" in arm]
    assert [between(found, arm, "no graft").difference.mean for arm in arms] == [1, 1]


def test_contrasts_of_a_sweep_are_of_its_own_runs():
    own = rows({0: 55, 1: 57}, strategy="freeze")
    found = design_of(no_graft({0: 50, 1: 51}), own, rows({0: 10, 1: 12}, strategy="freeze", site="late"))
    keys = [row["key"] for row in (*no_graft({0: 50, 1: 51}), *own)]
    spec = {"of": ["+strategy=freeze", "-donor=none"], "metric": "test/acc", "runs": keys}
    ((only,), _) = named(found, {"c": spec})
    assert only.difference.mean == 5.5 and only.num_cells == 1


def test_conditions_that_name_every_axis_share_the_one_cell():
    found = design_of(no_graft({0: 50, 1: 52}), rows({0: 51, 1: 54}))
    every = ["+strategy=full,site=early,host=h,donor=trained,data=d", "-strategy=full,site=-,host=h,donor=none,data=d"]
    only = contrast(found, "c", every)
    assert (only.num_cells, only.difference.mean) == (1, 1.5)


def test_levels_to_which_an_axis_does_not_apply_count_with_the_others():
    """A run without a graft has no site, and is a level of the donor all the same."""
    none, other, arm = {0: 10, 1: 11}, {0: 40, 1: 41}, {0: 60, 1: 62}
    by_donor = design_of(no_graft(none), rows(other, donor="random"), rows(arm))
    by_both = design_of(no_graft(none), rows(other, strategy="freeze"), rows(arm, strategy="thaw"))
    for found, terms in ((by_donor, ["+donor=trained", "-donor=none|random"]), (by_donor, ["+donor=trained", "-donor!=trained"]),
                         (by_both, ["+strategy=thaw", "-strategy=full|freeze,donor=none|trained"])):  # fmt: skip
        only = contrast(found, "c", terms)
        assert (only.difference.mean, only.left_out) == (35.5, ()), terms


def test_arms_that_differ_in_surgery_alone_are_compared_without_a_baseline():
    arms = [
        rows({0: level, 1: level + 1}, **{"surgery.calibrate": name}) for name, level in (("none", 50), ("moments", 53))
    ]
    ((only,), lacking) = named(design_of(*arms), {})
    assert abs(only.difference.mean) == 3 and lacking == []


def test_kinds_of_no_graft_are_compared_where_there_is_nothing_else():
    ((only,), _) = named(design_of(*(no_graft({0: level, 1: level}, **{"strategy.rest": rate}) for rate, level in (("1", 50), ("2", 54)))), {})  # fmt: skip
    assert abs(only.difference.mean) == 4


def test_a_seed_that_lacks_one_kind_of_a_control_is_not_held_against_the_other():
    found = design_of(
        no_graft({0: 50, 1: 50, 2: 50}, **{"strategy.rest": "1"}), no_graft({0: 70, 1: 70}, **{"strategy.rest": "0.1"}),
        rows({0: 60, 1: 60, 2: 60}, strategy="freeze"),
    )  # fmt: skip
    (cell,) = gains(found, "no graft", "test/acc").difference
    assert (cell.mean, cell.n) == (0, 2)


def test_an_arm_is_compared_with_no_graft_of_its_own_strategy_or_else_of_full():
    found = design_of(
        no_graft({0: 50, 1: 52}), no_graft({0: 40, 1: 41}, strategy="lp_ft"),
        rows({0: 51, 1: 54}), rows({0: 43, 1: 45}, strategy="lp_ft"), rows({0: 60, 1: 63}, strategy="freeze"),
    )  # fmt: skip
    assert list(found.runs.arm.unique())[:2] == ["no graft, full", "no graft, lp_ft"]
    over = gains(found, "no graft", "test/acc").set_index("strategy").difference
    assert {strategy: d.mean for strategy, d in over.items()} == {"full": 1.5, "lp_ft": 3.5, "freeze": 10.5}
    assert between(found, "lp_ft, trained", "no graft").difference.mean == 3.5
    assert between(found, "freeze, trained", "no graft").difference.mean == 10.5


def test_an_arm_is_compared_with_the_only_strategy_without_a_graft():
    found = design_of(no_graft({0: 50, 1: 52}, strategy="lp_ft"), rows({0: 51, 1: 54}))
    assert list(found.runs.arm.unique()) == ["no graft", "full, trained"]
    (cell,) = gains(found, "no graft", "test/acc").difference
    assert cell.mean == 1.5


def test_a_condition_that_does_not_name_the_donor_is_of_the_runs_with_one():
    found = design_of(no_graft({0: 50, 1: 52}), rows({0: 51, 1: 54}), rows({0: 60, 1: 63}, strategy="freeze"))
    gain = contrast(found, "c", ["+strategy=full", "-donor=none"])
    frozen = contrast(found, "c", ["+strategy=freeze", "-strategy=full"])
    assert (gain.difference.mean, gain.left_out) == (1.5, ())
    assert (frozen.difference.mean, frozen.left_out) == (9, ())
    without = design_of(no_graft({0: 50, 1: 52}), no_graft({0: 53, 1: 56}, strategy="lp_ft"))
    assert contrast(without, "c", ["+strategy=lp_ft", "-strategy=full"]).difference.mean == 3.5
