"""A metric that is registered after runs were done is computed from what they have kept."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from layergraft import load_runs, report
from layergraft.config import metric_registry
from layergraft.config.metric_registry import metric
from layergraft.errors import UserError
from layergraft.report.table import read
from layergraft.store.predictions import PREDICTIONS, labels_and_logits, read_predictions

SIDES = ("strategy=freeze,donor=trained", "strategy=hybrid")


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(metric_registry, "_METRICS", dict(metric_registry._METRICS))


@pytest.fixture
def margin():
    """A metric that no run has recorded."""

    @metric("multi_class", unit="nats", better=max)
    def margin(logits_NC, y_N):
        assert (logits_NC.dtype, y_N.dtype, logits_NC.shape[0]) == (torch.float32, torch.int64, len(y_N))
        first, second = logits_NC.topk(2).values.T
        return (first - second).mean().item()

    return margin


def of_predictions(metric, folder):
    y_N, logits_NC = map(torch.from_numpy, labels_and_logits(read_predictions(folder)))
    return metric(logits_NC, y_N)


def test_compare_and_tables_have_it(sweep, margin):
    small = sweep / "sweeps" / "small"
    table = load_runs(small, metrics=["test/margin", "test/acc"])
    expected = [of_predictions(margin, sweep / "runs" / key) for key in table.key]
    assert table["test/margin"].tolist() == expected and len(set(expected)) > 2
    means = table.groupby(["strategy", "donor", "seed"])["test/margin"].mean()
    delta = (means["freeze", "trained"] - means["hybrid", "trained"]).mean()
    told = report.compare(*SIDES, [small], "test/margin").splitlines()[0]
    assert told.startswith(f"{SIDES[0]} less {SIDES[1]}, test/margin, nats: {delta:+.1f} ± ")
    assert "test/margin" not in load_runs(small)  # nobody has asked
    assert load_runs(small, metrics=["test/auc"])["test/auc"].equals(load_runs(small)["test/auc"])


def test_what_is_recorded_is_what_the_predictions_give(sweep):
    table = load_runs(sweep / "sweeps" / "small")
    for name in ("auc", "f1", "sensitivity", "specificity", "balanced_acc", "ece"):
        function = metric_registry.metrics_of("multi_class")[name].function
        assert table[f"test/{name}"].tolist() == [
            of_predictions(function, folder) for folder in map(Path, table.folder)
        ]


def test_a_contrast_of_a_sweep_has_it(sweep, margin, tmp_path):
    shutil.copytree(sweep, tmp_path / "outputs")
    folder = tmp_path / "outputs" / "sweeps" / "small"
    plan = json.loads((folder / "sweep.json").read_text())
    plan["contrasts"] = {"margins": {"of": [f"+{SIDES[0]}", f"-{SIDES[1]}"], "metric": "test/margin"}}
    (folder / "sweep.json").write_text(json.dumps(plan))
    report.write([folder])
    page = (folder / "report.md").read_text()
    assert "| test/margin | nats | higher |" in page and "test/margin, nats" in page
    assert pd.read_csv(folder / "runs.csv")["test/margin"].notna().all()


def test_predictions_that_are_gone_are_told_and_other_names_refused(sweep, margin, tmp_path):
    shutil.copytree(sweep, tmp_path / "outputs")
    folder = tmp_path / "outputs" / "sweeps" / "small"
    kept, *gone = sorted((tmp_path / "outputs" / "runs").glob(f"*/{PREDICTIONS}"))
    gone[0].unlink()
    runs = read([folder], metrics=["test/margin"])
    assert f"test/margin: 1 run without it, and without {PREDICTIONS} to compute it from" in runs.notes
    assert runs.table["test/margin"].isna().sum() == 1 and runs.units["test/margin"] == "nats"
    kept.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="predictions.parquet is damaged"):
        read([folder], metrics=["test/margin"])
    for name in ("test/margn", "val/margin", "test/mae"):  # there is none; not of the test split; of another task
        with pytest.raises(UserError, match=f"unknown metric of these runs: '{name}'"):
            load_runs(sweep / "sweeps" / "small", metrics=[name])
        with pytest.raises(UserError, match=f"unknown metric of .*: '{name}'"):
            report.compare(*SIDES, [sweep / "sweeps" / "small"], name)


def test_torch_is_imported_when_there_is_something_to_compute(sweep):
    code = (
        "import sys; from pathlib import Path; from layergraft import report; from layergraft.config.metric_registry import metric\n"
        f"folder = Path({str(sweep / 'sweeps' / 'small')!r})\n"
        f"report.compare(*{SIDES!r}, [folder], 'test/f1'); print('torch' in sys.modules)\n"
        "@metric('multi_class', unit='%', better=max)\n"
        "def new(logits_NC, y_N): return 100.0 * (logits_NC.argmax(1) == y_N).double().mean().item()\n"
        f"print(report.compare(*{SIDES!r}, [folder], 'test/new').replace('test/new, points', 'points of test accuracy')"
        f" == report.compare(*{SIDES!r}, [folder])); print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True", "True"], done.stderr
