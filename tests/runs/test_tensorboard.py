"""What a run leaves for TensorBoard."""

import json

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata

from layergraft.runs.plan import plan_run
from layergraft.runs.tensorboard import _hparams


@pytest.fixture(params=["hybrid.late", "full.resnet18.none"])
def run(request, sweep):
    """A run's folder, and its events."""
    folder = next(path for path in (sweep / "runs").glob(f"{request.param}*") if path.is_dir())
    return folder, EventAccumulator(str(folder)).Reload()


def hparams_of(events):
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    given = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: value.string_value or value.number_value for name, value in given.items()}


def test_the_run_once_with_its_axes_and_final_figures(run):
    folder, events = run
    record = json.loads((folder / "record.json").read_text())
    told = hparams_of(events)
    assert {name: told[name] for name in ("strategy", "site", "host", "donor", "seed")} == {
        name: record["axes"][name] for name in ("strategy", "site", "host", "donor", "seed")
    }
    ended = events.summary_metadata[metadata.SESSION_END_INFO_TAG].plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(ended).status > 0
    for name in ("test/acc", "test/loss", "val/acc", "val/aulc", "train/loss"):
        (final,) = events.Scalars(f"final/{name.replace('/', '_')}")  # once
        assert final.value == pytest.approx(record["metrics"][name])


def test_runs_share_their_keys_and_the_axes_are_the_first_five(sweep):
    keys = {
        tuple(sorted(hparams_of(EventAccumulator(str(p)).Reload()))) for p in (sweep / "runs").iterdir() if p.is_dir()
    }
    assert len(keys) == 1 and keys.pop()[:5] == ("donor", "host", "seed", "site", "strategy")


@pytest.mark.parametrize(
    "override",
    ["host.width=8", "host.skips=false", "donor.data.half=A", "data.corrupt.noise=3", "surgery.calibrate=moments", "optim.lr=0.5",
     "schedule.epochs=9", "strategy.groups.rest=[head,'.*']", "host.norm=group"],
)  # fmt: skip
def test_what_may_be_swept_tells_runs_apart(override, config):
    base = ["data=digits", "donor.data=digits", "strategy=freeze"]
    assert _hparams(plan_run(config(*base, override))) != _hparams(plan_run(config(*base)))


def test_curves_and_pictures(run):
    folder, events = run
    curves = pd.read_csv(folder / "curves.csv")
    assert [event.value for event in events.Scalars("val/acc")] == pytest.approx(list(curves["val/acc"]))
    assert [event.step for event in events.Scalars("train/loss")] == list(curves.epoch)
    (plan,) = events.Images("plan")
    assert plan.encoded_image_string[:4] == b"\x89PNG" and plan.width > 300
    filters = [tag for tag in events.Tags()["images"] if tag.startswith("filters/")]
    assert bool(filters) == ("none" not in folder.name)


def test_the_layouts_of_all_runs_make_a_chart_a_strategy(sweep):
    charts = {}
    for folder in (path for path in (sweep / "runs").iterdir() if path.is_dir()):
        events = EventAccumulator(str(folder)).Reload()
        layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
        (category,) = layout.category
        assert category.title == "validation accuracy, %"  # the same in all, so that TensorBoard joins them
        (chart,) = category.chart
        tag = f"strategy/{chart.title}/val_acc"
        assert list(chart.multiline.tag) == [f"^{tag}$"]
        curve = [event.value for event in events.Scalars(tag)]
        assert curve == pytest.approx(list(pd.read_csv(folder / "curves.csv")["val/acc"]))
        charts.setdefault(chart.title, []).append(folder)
    assert {name: len(folders) for name, folders in charts.items()} == {"freeze": 8, "hybrid": 4, "full": 2}
