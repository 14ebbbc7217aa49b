"""Losses and figures of the kinds of labels, against torch and scikit-learn; and whole runs on them."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tests.data.written import medmnist_arrays
from torch.nn import functional as F

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
    assert Task.multi_class.figures(LOGITS, CLASSES) == {}
    expected = np.abs(LOGITS.argmax(1).numpy() - CLASSES.numpy()).mean()
    assert Task.ordinal.figures(LOGITS, CLASSES) == {"mae": pytest.approx(expected)}


def test_multi_label_is_binary_cross_entropy_of_every_label():
    task = Task.multi_label
    torch.testing.assert_close(task.loss(LOGITS, LABELS), F.binary_cross_entropy_with_logits(LOGITS, LABELS.float()))
    torch.testing.assert_close(task.loss(LOGITS, LABELS, reduction="sum"), 40 * task.loss(LOGITS, LABELS))
    smooth = F.binary_cross_entropy_with_logits(LOGITS, LABELS * 0.8 + 0.1)
    torch.testing.assert_close(task.loss(LOGITS, LABELS, label_smoothing=0.2), smooth)
    assert task.num_right(LOGITS, LABELS).item() / 40 == pytest.approx(
        ((LOGITS > 0) == (LABELS > 0)).float().mean().item()
    )
    assert task.figures(LOGITS, LABELS) == {"auc": pytest.approx(roc_auc_score(LABELS, LOGITS))}
    never = torch.cat([LABELS, torch.zeros(40, 1).long()], 1)  # a label that no image has is no part of the mean
    padded = torch.cat([LOGITS, LOGITS[:, :1]], 1)
    assert task.figures(padded, never)["auc"] == pytest.approx(roc_auc_score(LABELS, LOGITS))


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
    metrics = record.metrics
    assert ("test/auc" in metrics, "test/mae" in metrics) == (figure == "auc", figure == "mae")
    if figure:
        assert f"val/{figure}" in metrics and 0 <= metrics[f"test/{figure}"] <= 4
    assert record.data["task"] == {"auc": "multi_label", "mae": "ordinal"}.get(figure, "multi_class")
    measured = set(record.similarity["fixed"])
    assert measured == {"frechet", "a_distance", "logme"} | ({"leep"} if figure != "auc" else set())


def test_a_diverged_network_has_no_auc():
    assert np.isnan(Task.multi_label.figures(LOGITS * float("inf"), LABELS)["auc"])
