"""The registry of metrics: what may be added, what each consumer takes, and what is refused before any training."""

import re
from pathlib import Path

import numpy as np
import pytest
from tests.data.written import medmnist_arrays

from layergraft.config import metric_registry
from layergraft.config.metric_registry import TASKS, lookup, metric, metrics_of, recorded, watchable
from layergraft.errors import UserError
from layergraft.runs.plan import plan_run


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(metric_registry, "_METRICS", dict(metric_registry._METRICS))


def test_a_metric_is_one_function():
    @metric("ordinal", unit="classes", better=min)
    def worst(logits_NC, y_N):
        return 3.0

    assert "worst" in metric_registry.metrics_of("ordinal") and "worst" not in metric_registry.metrics_of("multi_class")
    assert lookup("test/worst") == lookup("val/worst") == metric_registry.Metric("classes", min, ("ordinal",), worst)
    assert "val/worst" in watchable("ordinal") and "val/worst" not in watchable("multi_label")
    assert {"val/worst", "test/worst"} <= set(recorded("ordinal", ()))
    metric("ordinal", unit="classes", better=min)(worst)  # a notebook's cell that is run again


def test_what_cannot_be_registered():
    with pytest.raises(UserError, match="unknown task of a metric 'multiclass'; did you mean 'multi_class'"):
        metric("multiclass", unit="%", better=max)
    for name in ("acc", "auc", "aulc"):
        other = type(test_what_cannot_be_registered)((lambda logits, y: 0.0).__code__, {"__name__": "mine"}, name)
        with pytest.raises(UserError, match=f"a metric of the name {name} is registered already; give mine's another"):
            metric("ordinal", unit="%", better=max)(other)


def test_units_and_directions():
    told = {name: (lookup(name).unit, lookup(name).unit_of_difference, lookup(name).direction)
            for name in ("test/acc", "val/aulc", "test/auc", "val/ece", "train/loss", "shock/acc", "drift", "steps_to/90")}  # fmt: skip
    assert told == {
        "test/acc": ("%", "points", "higher"), "val/aulc": ("%", "points", "higher"), "test/auc": ("0 to 1", "0 to 1", "higher"),
        "val/ece": ("%", "points", "lower"), "train/loss": ("nats", "nats", "lower"), "shock/acc": ("points", "points", "higher"),
        "drift": ("relative", "relative", ""), "steps_to/90": ("steps", "steps", "lower"),
    }  # fmt: skip
    assert lookup("test/f2") is lookup("train/acc") is lookup("acc") is None


def test_the_page_lists_every_metric():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| (higher|lower) \|", page, re.MULTILINE)
    told = {
        name: (TASKS if tasks == "all" else tuple(tasks.split(", ")), unit, better)
        for name, tasks, unit, better in rows
    }
    known = {name: metric for task in TASKS for name, metric in metrics_of(task).items()}
    assert told == {name: (metric.tasks, metric.unit, metric.direction) for name, metric in known.items()}
    derived = re.findall(r"`((?:train|step0|shock|steps_to)/\w+|val/aulc|drift)`", page)
    assert set(recorded("ordinal", [50])) - {f"{split}/{name}" for split in ("val", "test") for name in known} <= {
        *derived
    }


LACKS = (
    r"of multi_class data: 'val/mae'; did you mean '\S+'\? There are: val/acc, val/loss, val/balanced_acc, val/ece, val/auc, "
    r"val/f1, val/sensitivity, val/specificity, train/loss$"
)


@pytest.mark.parametrize(
    "overrides, at",
    [
        (["schedule.early_stopping={metric: val/mae, patience: 2}"], "schedule.early_stopping.metric"),
        (
            ["strategy=hybrid", "+strategy.phases.thaw.plateau={metric: val/mae, patience: 2}"],
            "strategy.phases.thaw.plateau.metric",
        ),
        (["donor.schedule.early_stopping={metric: val/mae, patience: 2}"], "donor.schedule.early_stopping.metric"),
    ],
)
def test_a_plateau_in_a_metric_of_other_data_is_refused(overrides, at, config):
    with pytest.raises(UserError, match=f"^unknown {at} {LACKS}"):
        plan_run(config("host=resnet8", "schedule.epochs=9", "donor.schedule.epochs=9", *overrides))


def test_a_plateau_in_a_metric_of_these_data_is_taken(config, tmp_path):
    np.savez(tmp_path / "chestmnist.npz", **medmnist_arrays(labels=14, channels=1))
    run = ["data=medmnist", "data.set=chestmnist", f"exec.data={tmp_path}", "host=resnet8", "donor=random"]
    plan = plan_run(config(*run, "schedule.early_stopping={metric: val/auc, patience: 2}"))
    assert set(plan.metrics) > {"val/auc", "test/auc", "val/aulc", "steps_to/90"} and "test/ece" not in plan.metrics
