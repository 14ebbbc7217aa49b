"""What a run leaves for TensorBoard."""

import json

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout


@pytest.fixture(params=["hybrid.late", "full.resnet18.none"])
def run(request, sweep):
    """A run's folder, and its events."""
    folder = next(path for path in (sweep / "runs").glob(f"{request.param}*") if path.is_dir())
    return folder, EventAccumulator(str(folder)).Reload()


def test_curves_and_hparams(run):
    folder, events = run
    curves = pd.read_csv(folder / "curves.csv")
    assert [event.value for event in events.Scalars("val/acc")] == pytest.approx(list(curves["val/acc"]))
    assert [event.step for event in events.Scalars("train/loss")] == list(curves.epoch)
    metrics = json.loads((folder / "record.json").read_text())["metrics"]
    (final,) = events.Scalars("final/test_acc")
    assert final.value == pytest.approx(metrics["test/acc"])
    (start,) = [v for k, v in events.summary_metadata.items() if k == "_hparams_/session_start_info"]
    for axis in (b"strategy", b"site", b"host", b"donor", b"seed"):
        assert axis in start.plugin_data.content


def test_a_layout_groups_curves_by_strategy(run):
    folder, events = run
    strategy = json.loads((folder / "record.json").read_text())["axes"]["strategy"]
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["validation accuracy, %", "training loss"]
    for category, name in zip(layout.category, ("val_acc", "train_loss"), strict=True):
        (chart,) = category.chart
        assert chart.title == strategy and list(chart.multiline.tag) == [f"^strategy/{strategy}/{name}$"]
        curve = [event.value for event in events.Scalars(f"strategy/{strategy}/{name}")]
        assert curve == pytest.approx(list(pd.read_csv(folder / "curves.csv")[name.replace("_", "/")]))
