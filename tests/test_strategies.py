"""Plans: names in, groups and phases out."""

import pytest

from layergraft.errors import UserError
from layergraft.recipes import PhaseSpec, StrategySpec
from layergraft.strategies import make_plan

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
    "no graft": ({"a": ["graft"], "b": [".*"]}, {"p": phase(a=1.0, b=1.0)}, "there is no graft in this network"),
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
    "order": (ALL, {"p": phase(all=1.0), "q": phase(5, all=1.0), "r": phase(5, all=1.0)}, "not after phase q at 5"),
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
