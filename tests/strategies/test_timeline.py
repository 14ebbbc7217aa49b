"""A plan over the epochs: the numbers, the words, the picture."""

import json

import numpy as np

from layergraft.config.training_schema import PhaseSpec, PlateauSpec, ScheduleSpec, StrategySpec
from layergraft.strategies.phases import make_plan
from layergraft.strategies.timeline import covered, figure, picture, stretches, timeline

PHASES = {
    "start": PhaseSpec(0, {"rest": 1.0}, ["head"]),
    "thaw": PhaseSpec(3, {"rest": 0.1, "head": 0.5}, plateau=PlateauSpec("val/acc", 1), batch_norm_statistics=["rest"]),
}
SPEC = StrategySpec("s", groups={"head": ["head"], "rest": [".*"]}, phases=PHASES)
PLAN = make_plan(SPEC, ["a.weight", "a.bias", "fc.weight"], ["a"], {"head": ["fc"]}, 5)
SIZES = {"a.weight": 10, "a.bias": 2, "fc.weight": 5}


def test_a_timeline_is_the_rates_of_each_epochs_first_and_last_step():
    line = timeline(PLAN, 0.1, ScheduleSpec("step", 5, step_epochs=4, gamma=0.5), 3, SIZES.get)
    assert line["groups"]["head"]["parameters"] == 5 and line["groups"]["rest"]["tensors"] == ["a.weight", "a.bias"]
    assert np.allclose(line["groups"]["head"]["lr"], [[0, 0]] * 3 + [[0.05, 0.05], [0.025, 0.025]])
    assert np.allclose(line["groups"]["rest"]["lr"], [[0.1, 0.1]] * 3 + [[0.01, 0.01], [0.005, 0.005]])
    assert [phase["epoch"] for phase in line["phases"]] == [0, 3]
    assert line["phases"][1]["plateau"] == "or as soon as val/acc has not been better for 1 epochs"
    assert line["phases"][1]["batch_norm_statistics"] == ["rest"]
    assert stretches(line) == [(0, 2), (3, 3), (4, 4)]
    json.dumps(line, allow_nan=False)


def test_with_curves_phases_are_where_they_were():
    curves = [{"val/acc": 5}, {"val/acc": 4}, {"val/acc": 6}]
    line = timeline(PLAN, 0.1, ScheduleSpec("constant", 5), 3, SIZES.get, curves)
    assert [phase["epoch"] for phase in line["phases"]] == [0, 2] and line["epochs"] == 3
    assert line["groups"]["head"]["lr"] == [[0, 0], [0, 0], [0.05, 0.05]]
    line = timeline(PLAN, 0.1, ScheduleSpec("constant", 5), 3, SIZES.get, curves[:1])
    assert [phase["name"] for phase in line["phases"]] == ["start"]  # what never came is not shown


def test_rates_that_change_within_an_epoch_are_shown_as_such():
    line = timeline(PLAN, 1.0, ScheduleSpec("cosine", 5, warmup=1), 4, SIZES.get)
    assert line["groups"]["rest"]["lr"][0] == [0.25, 1.0]
    assert stretches(line) == [(epoch, epoch) for epoch in range(5)]


def test_names_are_shortened_where_a_module_is_whole():
    every = [
        "conv1.weight",
        "layer1.0.a.weight",
        "layer1.0.b.weight",
        "layer1.1.a.weight",
        "layer10.a.weight",
        "fc.weight",
        "fc.bias",
    ]
    assert covered(every[1:4], every) == ["layer1.*"]
    assert covered(every[1:3], every) == ["layer1.0.*"]
    assert covered(["layer1.0.a.weight", "fc.bias"], every) == ["layer1.0.a.*", "fc.bias"]


def test_the_picture_shows_each_group_and_greys_what_is_frozen():
    line = timeline(PLAN, 0.1, ScheduleSpec("constant", 5), 3, SIZES.get)
    axis = figure(line).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["head, 5", "rest, 12"]
    mesh = axis.collections[0].get_array()
    assert mesh.mask.tolist() == [[True] * 3 + [False] * 2, [False] * 5]
    pixels = picture(json.dumps(line))
    assert pixels.ndim == 3 and pixels.dtype == np.uint8 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
