"""Plans: names in, groups and phases out."""

import math

import pytest

from layergraft.config.training_schema import PhaseSpec, PlateauSpec, ScheduleSpec, SplitSpec, StrategySpec
from layergraft.errors import UserError
from layergraft.strategies.phases import epochs_to_plateau, make_plan

PARAMETERS = ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer10.conv.weight", "fc.weight"]
ROLES = {"stem": ["conv1", "bn1"], "head": ["fc"], "graft": ["conv1"]}


def plan(groups, phases, epochs=10, roles=ROLES):
    return make_plan(StrategySpec("s", groups=groups, phases=phases), PARAMETERS, ["bn1"], roles, epochs)


def phase(epoch=0, freeze=(), **train):
    return PhaseSpec(epoch, train, list(freeze))


def test_first_match_wins_and_every_parameter_is_in_one_group():
    made = plan({"graft": ["graft"], "stem": ["stem"], "rest": [".*"]}, {"a": phase(graft=1.0, stem=1.0, rest=1.0)})
    assert made.groups == {
        "graft": ["conv1.weight"],
        "stem": ["bn1.weight", "bn1.bias"],
        "rest": ["layer1.0.conv1.weight", "layer10.conv.weight", "fc.weight"],
    }
    assert made.norms == {"bn1": "stem"}


def test_a_path_matches_whole_names_only():
    made = plan({"one": ["layer1"], "rest": [".*"]}, {"a": phase(one=1.0, rest=1.0)})
    assert made.groups["one"] == ["layer1.0.conv1.weight"]  # not layer10


def test_phase_is_a_function_of_the_epoch():
    made = plan({"h": ["head"], "r": [".*"]}, {"a": phase(freeze=["r"], h=1.0), "b": phase(4, h=0.5, r=0.1)})
    assert [made.phase(epoch).name for epoch in (9, 0, 3, 4)] == ["b", "a", "a", "b"]
    assert made.phase(0).lr == {"h": 1.0, "r": 0.0}
    assert made.phase(4).lr == {"h": 0.5, "r": 0.1}


ALL = {"all": [".*"]}
BAD = {
    "pattern": ({"a": ["layer9"], "b": [".*"]}, {"p": phase(a=1.0, b=1.0)}, "'layer9'; did you mean 'layer1'?"),
    "no graft": (
        {"a": ["graft"], "b": [".*"]},
        {"p": phase(freeze=["b"], a=1.0)},
        "phase p trains nothing: there is nothing in a here; there is no graft (donor=none), so no parameter has the role graft; use strategy=full",
    ),
    "regex": ({"a": ["("]}, {"p": phase(a=1.0)}, "not a regular expression"),
    "left over": ({"a": ["head"]}, {"p": phase(a=1.0)}, "parameter 'conv1.weight' is in no group"),
    "empty": ({"a": [".*"], "b": ["head"]}, {"p": phase(a=1.0, b=1.0)}, "group 'b' is empty"),
    "past the end": (
        ALL,
        {"p": phase(all=1.0), "q": phase(10, all=1.0)},
        "phase q starts at epoch 10, but training ends",
    ),
    "negative": (ALL, {"p": phase(-1, all=1.0)}, "starts at epoch -1"),
    "late start": (ALL, {"p": phase(1, all=1.0)}, "is the first and starts at epoch 1"),
    "order": (ALL, {"p": phase(all=1.0), "q": phase(5, all=0.5), "r": phase(5, all=0.1)}, "not after phase q at 5"),
    "no phase": (ALL, {}, "has no phases"),
    "unknown group": (ALL, {"p": phase(al=1.0)}, "'al'; did you mean 'all'?"),
    "zero lr": (ALL, {"p": phase(all=0.0)}, "trains all at 0.0 times"),
    "not said": ({"a": ["head"], "b": [".*"]}, {"p": phase(a=1.0)}, "group 'b'; it says neither"),
    "said twice": (ALL, {"p": phase(freeze=["all"], all=1.0)}, "group 'all'; it says both"),
    "idle": (ALL, {"p": phase(freeze=["all"])}, "phase p trains nothing: it freezes every group"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_named(case):
    groups, phases, message = BAD[case]
    roles = ROLES | ({"graft": []} if case == "no graft" else {})
    with pytest.raises(UserError) as error:
        plan(groups, phases, roles=roles)
    assert message in str(error.value) and "\n" not in str(error.value)


# Depth

DEEP = ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.host.conv1.weight",
        "layer2.0.donor.weight", "layer2.1.conv1.weight", "layer3.host.0.conv1.weight", "layer3.donor.weight", "fc.weight", "fc.bias"]  # fmt: skip
MOVED = {"layer2.0.host.conv1.weight": "layer2.0.conv1.weight", "layer3.host.0.conv1.weight": "layer3.0.conv1.weight"}


def deep(split, phases, epochs=10, groups=ALL, **more):
    spec = StrategySpec("s", groups=groups, split={"all": split}, phases=phases, **more)
    blocks = ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0"]
    return make_plan(spec, DEEP, ["bn1"], ROLES | {"graft": ["layer2.0.donor"]}, epochs, blocks, moved=MOVED)


def test_layer_wise_decay_is_the_numbers_written_here():
    made = deep(SplitSpec("stage", 1 / 2.6), {"p": phase(all=1.0)})
    expected = {"all.stem": 0.0218829873, "all.layer1": 0.0568957670, "all.layer2": 0.1479289941, "all.layer3": 0.3846153846, "all.head": 1.0}  # fmt: skip
    assert made.phases[0].lr == pytest.approx(expected, abs=1e-9)  # 2.6 ** -4, -3, -2, -1, 0
    assert made.groups["all.head"] == ["fc.weight", "fc.bias"] and made.norms == {"bn1": "all.stem"}

    made = deep(SplitSpec("block", 0.75), {"p": phase(all=0.5)})
    expected = {"all.stem": 0.5 * 0.177978515625, "all.layer1.0": 0.5 * 0.2373046875, "all.layer1.1": 0.5 * 0.31640625,
                "all.layer2.0": 0.5 * 0.421875, "all.layer2.1": 0.5 * 0.5625, "all.layer3.0": 0.5 * 0.75, "all.head": 0.5}  # fmt: skip
    assert made.phases[0].lr == pytest.approx(expected, abs=1e-9)  # 0.75 ** 6 to 1
    assert list(made.groups) == list(expected)
    assert made.groups["all.layer2.0"] == ["layer2.0.host.conv1.weight", "layer2.0.donor.weight"]
    # A donor beside a whole stage is of the block next to it: it adds no level.
    assert made.groups["all.layer3.0"] == ["layer3.host.0.conv1.weight", "layer3.donor.weight"]


def test_a_block_in_a_stages_place_is_one_part():
    names = [
        "conv1.weight",
        "layer1.0.conv1.weight",
        "layer2.conv1.weight",
        "layer2.bn1.weight",
        "layer2.downsample.0.weight",
        "fc.weight",
    ]
    spec = StrategySpec("s", groups=ALL, split={"all": SplitSpec("block")}, phases={"p": phase(all=1.0)})
    made = make_plan(spec, names, [], ROLES, 5, ["layer1.0", "layer2.0", "layer2.1"])
    assert list(made.groups) == ["all.stem", "all.layer1.0", "all.layer2", "all.head"]


def test_parts_warm_up_once_each_from_where_they_begin():
    made = deep(SplitSpec("stage"), {"p": PhaseSpec(0, {"all": 1.0}, gradual_unfreeze={"all": 5}, warmup={"all": 2.0})})
    assert rates(made, "all.head", 5) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    assert rates(made, "all.layer2", 6) == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    with pytest.raises(
        UserError, match="all.stem would begin to train at epoch 4, warm up for 2, but training ends after 5 epochs"
    ):
        deep(SplitSpec("stage"), {"p": PhaseSpec(0, {"all": 1.0}, gradual_unfreeze={"all": 5}, warmup={"all": 2.0})}, 5)


def test_the_head_begins_alone_however_short_training_is():
    made = deep(SplitSpec("stage"), {"p": PhaseSpec(0, {"all": 1.0}, gradual_unfreeze={"all": 2})})
    assert [group for group in made.groups if made.phase(0).trains(group)] == ["all.head"]
    assert all(made.phase(2).trains(group) for group in made.groups)


def test_early_stopping_waits_for_the_last_phase():
    phases = {"a": phase(freeze=["h"], r=1.0), "b": phase(4, h=1.0, r=1.0)}
    made = plan({"h": ["head"], "r": [".*"]}, phases)
    spec, flat = PlateauSpec("val/loss", 2), [{"val/loss": 1.0}] * 8
    assert [made.is_over(spec, flat[:n]) for n in range(8)] == [False] * 7 + [True]  # epochs 4, 5 and 6


def test_gradual_unfreeze_thaws_from_the_head_and_spreads_evenly():
    made = deep(SplitSpec("stage"), {"p": PhaseSpec(0, {"all": 1.0}, gradual_unfreeze={"all": 5})})
    training = [
        [group.removeprefix("all.") for group in made.groups if made.phase(epoch).trains(group)] for epoch in range(6)
    ]
    assert training == [
        ["head"],
        ["layer3", "head"],
        ["layer2", "layer3", "head"],
        ["layer1", "layer2", "layer3", "head"],
        ["stem", "layer1", "layer2", "layer3", "head"],
        ["stem", "layer1", "layer2", "layer3", "head"],
    ]
    assert made.phase(2).batch_norm_statistics == {"all.layer2", "all.layer3", "all.head"}
    assert [p.name for p in made.phases] == ["p", "p+1", "p+2", "p+3", "p+4"]
    at_once = deep(SplitSpec("stage"), {"p": PhaseSpec(0, {"all": 1.0}, gradual_unfreeze={"all": 0})})
    assert len(at_once.phases) == 1


# Time


def rates(made, group, epochs, curves=(), steps=2, schedule=None):
    schedule = schedule or ScheduleSpec("constant", epochs)
    return [made.rates(schedule, step, steps, curves)[group] for step in range(epochs * steps)]


def test_warm_up_at_an_unfreeze_is_the_sequence_written_here():
    phases = {"a": phase(freeze=["h"], r=1.0), "b": PhaseSpec(2, {"h": 0.5, "r": 1.0}, warmup={"h": 2.0})}
    made = plan({"h": ["head"], "r": [".*"]}, phases)
    assert rates(made, "h", 5) == [0, 0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert rates(made, "r", 5) == [1.0] * 10
    falling = rates(made, "h", 4, schedule=ScheduleSpec("step", 4, step_epochs=3, gamma=0.1))
    assert falling == pytest.approx([0, 0, 0, 0, 0.125, 0.25, 0.0375, 0.05])


def test_a_plateau_starts_the_next_phase_sooner():
    phases = {"a": phase(freeze=["h"], r=1.0), "b": PhaseSpec(8, {"h": 1.0, "r": 1.0}, plateau=PlateauSpec("val/loss", 2, 0.1)),
              "c": phase(9, freeze=["r"], h=1.0)}  # fmt: skip
    made = plan({"h": ["head"], "r": [".*"]}, phases)
    curves = [{"val/loss": loss} for loss in (1.0, 0.5, 0.45, 0.41, 0.1, 0.1)]
    assert made.starts() == [0, 8, 9]  # at the latest
    assert made.starts(curves) == [0, 4, 9]  # 0.5 is the best by 0.1, and two epochs after it have passed
    assert [made.phase(epoch, curves).name for epoch in range(7)] == ["a", "a", "a", "a", "b", "b", "b"]
    assert (
        made.phase(4, curves[:4]).name == "b" and made.phase(3, curves).name == "a"
    )  # nothing that comes later matters
    assert rates(made, "h", 5, curves) == [0, 0, 0, 0, 0, 0, 0, 0, 1.0, 1.0]


def test_epochs_to_plateau_by_hand():
    def points(*values):
        return [dict.fromkeys(("val/acc", "val/loss", "val/ece", "val/auc"), value) for value in values]

    assert epochs_to_plateau(PlateauSpec("val/acc", 2), points(1, 2, 3, 3, 2, 9)) == 5
    assert epochs_to_plateau(PlateauSpec("val/loss", 2), points(3, 2, 1, 1, 2)) == 5
    assert (
        epochs_to_plateau(PlateauSpec("val/ece", 2), points(3, 2, 1, 1, 2)) == 5
    )  # as the registry says, less is better
    assert epochs_to_plateau(PlateauSpec("val/auc", 2), points(1, math.nan, 2, math.nan, math.nan)) == 5
    assert epochs_to_plateau(PlateauSpec("val/auc", 2), points(math.nan, 1, 0, 0)) == 4
    assert epochs_to_plateau(PlateauSpec("val/loss", 1), points(3, 4)) == 2
    assert epochs_to_plateau(PlateauSpec("val/acc", 3), points(1, 2, 2, 2)) == math.inf
    assert epochs_to_plateau(PlateauSpec(), points(1, 1, 1, 1)) == math.inf


# Roles, statistics, weight decay


def test_norm_before_and_after_are_roles():
    roles = ROLES | {"norm": ["bn1"], "before": ["conv1.weight"], "after": ["layer10.conv.weight"]}
    made = plan(
        {"n": ["norm"], "b": ["before"], "a": ["after"], "r": [".*"]},
        {"p": phase(n=1.0, b=1.0, a=1.0, r=1.0)},
        roles=roles,
    )
    assert made.groups["n"] == ["bn1.weight", "bn1.bias"] and made.norms == {"bn1": "n"}
    assert made.groups["b"] == ["conv1.weight"] and made.groups["a"] == ["layer10.conv.weight"]


def test_statistics_move_where_a_group_trains_unless_the_phase_says():
    groups = {"n": ["bn1"], "r": [".*"]}
    assert plan(groups, {"p": phase(n=1.0, r=1.0)}).phases[0].batch_norm_statistics == {"n", "r"}
    assert plan(groups, {"p": phase(freeze=["n"], r=1.0)}).phases[0].batch_norm_statistics == {"r"}
    assert (
        plan(groups, {"p": PhaseSpec(0, {"n": 1.0, "r": 1.0}, batch_norm_statistics=[])})
        .phases[0]
        .batch_norm_statistics
        == set()
    )
    assert plan(groups, {"p": PhaseSpec(0, {"r": 1.0}, ["n"], batch_norm_statistics=["n"])}).phases[
        0
    ].batch_norm_statistics == {"n"}


def test_values_of_a_group_are_those_of_its_parts():
    made = deep(SplitSpec("stage"), {"p": phase(all=1.0)}, weight_decay={"all": 0.3}, l2_sp={"all": 0.1})
    assert made.weight_decay == dict.fromkeys(made.groups, 0.3) and made.l2_sp == dict.fromkeys(made.groups, 0.1)


def test_a_group_of_a_role_may_have_nothing_in_this_network():
    roles = {"stem": ["conv1", "bn1"], "graft": ["conv1", "bn1"], "adapter": [], "head": ["fc"]}
    groups = {"graft": ["graft"], "adapter": ["adapter"], "stem": ["stem"], "rest": [".*"]}
    made = plan(groups, {"p": phase(graft=1.0, adapter=1.0, stem=1.0, rest=1.0)}, roles=roles)
    assert made.groups["adapter"] == [] and made.groups["stem"] == []  # a donor stands where the stem was


def test_roles_of_an_absent_graft_match_nothing_and_their_phases_stand():
    groups = {"graft": ["graft"], "around": ["adapter", "before", "after"], "rest": [".*"]}
    phases = {"p": phase(freeze=["graft", "around"], rest=1.0), "q": phase(4, graft=0.1, around=1.0, rest=1.0)}
    spec = StrategySpec("s", groups=groups, phases=phases, split={"graft": SplitSpec()}, l2_sp={"graft": 0.1})
    absent = dict.fromkeys(("graft", "adapter", "before", "after"), ())
    made = make_plan(spec, PARAMETERS, ["bn1"], ROLES | absent, 10)
    assert made.groups == {"graft": [], "around": [], "rest": PARAMETERS}
    assert [(one.name, one.epoch, one.lr["rest"]) for one in made.phases] == [("p", 0, 1.0), ("q", 4, 1.0)]


def test_calibration_is_frozen_where_no_group_names_it_and_a_group_of_its_own_everywhere():
    roles = ROLES | {"calibration": ["layer10"]}
    for patterns in ([".*"], [".*conv.*", "layer1", ".*"]):
        made = plan(
            {"h": ["head"], "r": patterns}, {"p": phase(freeze=["h"], r=1.0), "q": phase(4, h=1.0, r=1.0)}, roles=roles
        )
        assert made.groups["calibration"] == ["layer10.conv.weight"] and made.phase(9).lr["calibration"] == 0.0
    for named in ("calibration", "layer10"):
        made = plan({"r": [".*", named]}, {"p": phase(r=0.5)}, roles=roles)
        assert made.groups["r.calibration"] == ["layer10.conv.weight"] and made.phase(0).lr["r.calibration"] == 0.5
    assert list(plan({"c": ["calibration"], "r": [".*"]}, {"p": phase(c=1.0, r=1.0)}, roles=roles).groups) == ["c", "r"]
    with pytest.raises(UserError, match="group 'calibration' does not have the role calibration; add it"):
        plan({"calibration": [".*"]}, {"p": phase(calibration=1.0)}, roles=roles)


SPLIT = {"split": {"all": SplitSpec()}}
MORE_BAD = {
    "before without a graft": ({"a": ["before", "head"]}, {"p": phase(a=1.0)}, {}, "parameter 'conv1.weight' is in no group; its groups: a; there is no graft (donor=none), so no parameter has the role before; use strategy=full"),
    "only what is not there": ({"a": ["adapter"], "b": [".*"]}, {"p": phase(freeze=["b"], a=1.0)}, {}, "phase p trains nothing: there is nothing in a here"),
    "no pattern": ({"a": [], "b": [".*"]}, {"p": phase(a=1.0, b=1.0)}, {}, "group a has no pattern, so it matches nothing"),
    "in two groups": ({"a": ["fc"], "b": ["fc", ".*"]}, {"p": phase(a=1.0, b=1.0)}, {}, "pattern 'fc' is in group a and again in b"),
    "an unfreeze that is none": ({"a": ["fc"], "b": [".*"]}, {"p": phase(freeze=["a"], b=1.0), "q": phase(3, freeze=["a"], b=1.0)}, {}, "phase q changes nothing: it is the phase before it once more"),
    "split": (ALL, {"p": phase(all=1.0)}, {"split": {"al": SplitSpec()}}, "unknown group in strategy s, split: 'al'; did you mean 'all'?"),
    "decay": (ALL, {"p": phase(all=1.0)}, {"weight_decay": {"rest": 1.0}}, "unknown group in strategy s, weight_decay: 'rest'"),
    "anchor": (ALL, {"p": phase(all=1.0)}, {"l2_sp": {"graft": 1.0}}, "unknown group in strategy s, l2_sp: 'graft'"),
    "thaws too late": (ALL, {"p": PhaseSpec(5, {"all": 1.0}, gradual_unfreeze={"all": 20})}, SPLIT, "first and starts at epoch 5"),
    "never thaws": (ALL, {"p": PhaseSpec(0, {"all": 1.0}, gradual_unfreeze={"all": 20})}, SPLIT, "all.layer1 would begin to train at epoch 10, but training ends after 10 epochs"),
    "top down of one": (ALL, {"p": PhaseSpec(0, {"all": 1.0}, gradual_unfreeze={"all": 2})}, {}, "group all is not taken apart; strategy.split.all.by=stage does it"),
    "warm-up of none": ({"h": ["head"], "r": [".*"]}, {"p": PhaseSpec(0, {"r": 1.0}, ["h"], warmup={"h": 1})}, {}, "phase p, warmup: it does not train h"),
    "warm-up past the end": (ALL, {"p": PhaseSpec(0, {"all": 1.0}, warmup={"all": 11})}, {}, "warmup.all takes 11 epochs from epoch 0 on, but training ends after 10"),
    "statistics of none": (ALL, {"p": PhaseSpec(0, {"all": 1.0}, batch_norm_statistics=["al"])}, {}, "unknown group in strategy s, phase p, batch_norm_statistics: 'al'"),
    "first on a plateau": (ALL, {"p": PhaseSpec(0, {"all": 1.0}, plateau=PlateauSpec(patience=2))}, {}, "is the first: it has no plateau to wait for"),
    "plateau too long": (ALL, {"p": phase(all=1.0), "q": PhaseSpec(3, {"all": 0.1}, plateau=PlateauSpec(patience=3))}, {}, "waits for a plateau of 3 epochs, but starts at epoch 3 in any case"),
    "two at once": (ALL, {"p": phase(all=1.0), "q": phase(0, all=0.1)}, {}, "not after phase p at 0 (is schedule.epochs=10 too short for a share of it?)"),
}  # fmt: skip


@pytest.mark.parametrize("case", MORE_BAD)
def test_what_else_cannot_be_is_named(case):
    groups, phases, more, message = MORE_BAD[case]
    roles = ROLES | {"graft": [], "before": [], "adapter": []}
    with pytest.raises(UserError) as error:
        make_plan(StrategySpec("s", groups=groups, phases=phases, **more), PARAMETERS, ["bn1"], roles, 10)
    assert message in str(error.value) and "\n" not in str(error.value)
