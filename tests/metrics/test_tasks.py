"""Losses of the kinds of labels, against torch; and whole runs on them."""

import numpy as np
import pandas as pd
import pytest
import torch
from tests.data.written import medmnist_arrays
from torch.nn import functional as F

from layergraft.config.metric_registry import metrics_of, recorded
from layergraft.metrics.tasks import Task
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute

LOGITS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(40) % 4
LABELS = (torch.arange(160).view(40, 4) * 7 % 3 == 0).long()


def test_multi_class_and_ordinal_are_cross_entropy():
    for task in (Task.multi_class, Task.ordinal):
        assert task.loss(LOGITS, CLASSES) == F.cross_entropy(LOGITS, CLASSES)
        assert task.num_right(LOGITS, CLASSES) == (LOGITS.argmax(1) == CLASSES).sum()


def test_multi_label_is_binary_cross_entropy_of_every_label():
    task = Task.multi_label
    torch.testing.assert_close(task.loss(LOGITS, LABELS), F.binary_cross_entropy_with_logits(LOGITS, LABELS.float()))
    torch.testing.assert_close(task.loss(LOGITS, LABELS, reduction="sum"), 40 * task.loss(LOGITS, LABELS))
    smooth = F.binary_cross_entropy_with_logits(LOGITS, LABELS * 0.8 + 0.1)
    torch.testing.assert_close(task.loss(LOGITS, LABELS, label_smoothing=0.2), smooth)
    assert task.num_right(LOGITS, LABELS).item() / 40 == pytest.approx(
        ((LOGITS > 0) == (LABELS > 0)).float().mean().item()
    )


@pytest.mark.parametrize(
    "name, arrays, figure",
    [
        ("chestmnist", {"labels": 14, "channels": 1}, "auc"),
        ("retinamnist", {"classes": 5}, "mae"),
        ("breastmnist", {"classes": 2, "channels": 1}, None),
    ],
)
def test_a_run_on_a_set_of_medmnist(name, arrays, figure, config, tmp_path):
    np.savez(tmp_path / f"{name}.npz", **medmnist_arrays(**arrays))
    run = config("data=medmnist", f"data.set={name}", f"exec.data={tmp_path}", f"exec.outputs={tmp_path / 'o'}",
                 "host=resnet8", "host.width=4", "schedule.epochs=2", "donor.schedule.epochs=1", "exec.device=cpu",
                 "regularizer.mixup=0.2", "regularizer.ema=0.9", "exec.similarity.resamples=2",
                 "exec.probe.epochs=[0,-1]", "strategy=auto_rgn")  # fmt: skip
    record = execute(plan_run(run))
    assert record.status == "completed", record.traceback
    metrics, task = record.metrics, {"auc": "multi_label", "mae": "ordinal"}.get(figure, "multi_class")
    assert ("test/auc" in metrics, "test/mae" in metrics) == (figure == "auc", figure == "mae")
    if figure:
        assert f"val/{figure}" in metrics and 0 <= metrics[f"test/{figure}"] <= 4
    assert record.data["task"] == task
    assert set(metrics) <= set(recorded(task, run.exec.probe.thresholds)) and set(metrics) == set(record.units)
    assert {f"{split}/{name}" for split in ("val", "test") for name in metrics_of(task)} <= set(metrics)
    curves = pd.read_csv(tmp_path / "o" / "runs" / record.key / "curves.csv")
    assert {f"val/{name}" for name in metrics_of(task)} <= set(curves)
    measured = set(record.similarity["fixed"])
    assert measured == {"frechet", "a_distance", "logme"} | ({"leep"} if figure != "auc" else set())
