"""Losses of the kinds of labels, against torch; and whole runs on them."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_auc_score,
)
from tests.data.written import medmnist_arrays
from torch.nn import functional as F

from layergraft.config.metric_registry import metrics_of, recorded
from layergraft.metrics.tasks import Task
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute
from layergraft.store.predictions import labels_and_logits, read_predictions

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


WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_an_image_counts_as_much_as_its_class(smoothing):
    task, each = Task.ordinal, F.cross_entropy(LOGITS, CLASSES, reduction="none", label_smoothing=smoothing)
    for reduction, expected in (("mean", (each * WEIGHTS[CLASSES]).mean()), ("sum", (each * WEIGHTS[CLASSES]).sum())):
        found = task.loss(LOGITS, CLASSES, reduction, smoothing, WEIGHTS)
        torch.testing.assert_close(found, expected)
    even = task.loss(LOGITS, CLASSES, label_smoothing=smoothing, class_weights=torch.ones(4))
    torch.testing.assert_close(even, task.loss(LOGITS, CLASSES, label_smoothing=smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_having_a_label_counts_as_much_as_the_label(smoothing):
    target = LABELS * (1 - smoothing) + smoothing / 2
    each = F.binary_cross_entropy_with_logits(LOGITS, target, reduction="none")
    expected = torch.where(LABELS > 0, WEIGHTS, 1.0) * each
    found = Task.multi_label.loss(LOGITS, LABELS, "sum", smoothing, WEIGHTS)
    torch.testing.assert_close(found, expected.mean(1).sum())
    if not smoothing:
        plain = F.binary_cross_entropy_with_logits(LOGITS, LABELS.float(), pos_weight=WEIGHTS)
        torch.testing.assert_close(Task.multi_label.loss(LOGITS, LABELS, class_weights=WEIGHTS), plain)


@pytest.mark.parametrize("task, labels", [(Task.multi_class, F.one_hot(CLASSES)), (Task.multi_label, LABELS)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_mixed_image_counts_as_the_mixture_of_its_two(task, labels, smoothing):
    share, others = 0.3, labels.roll(7, 0).float()

    def loss(y):
        return task.loss(LOGITS, y, label_smoothing=smoothing, class_weights=WEIGHTS)

    mixed = loss(share * labels + (1 - share) * others)
    torch.testing.assert_close(mixed, share * loss(labels.float()) + (1 - share) * loss(others))


def as_scikit_learn_has_it(predictions, record, test):
    """The metrics of a record are those of the kept predictions, which are of these images."""
    y, logits = labels_and_logits(predictions)
    assert predictions.row.tolist() == test.rows.tolist() and np.array_equal(y, test.y_N)
    found = {name: record.metrics[f"test/{name}"] for name in ("acc", "auc", "f1", "sensitivity", "specificity")}
    if y.ndim == 2:
        scores, told, of, average = logits, logits > 0, y, "macro"
        assert record.confusion is None
    else:
        told, scores = logits.argmax(1), logits.astype(float)
        is_binary = logits.shape[1] == 2
        of, average = y, "binary" if is_binary else "macro"
        scores = scores[:, 1] - scores[:, 0] if is_binary else torch.from_numpy(scores).softmax(1).numpy()
        assert record.confusion == confusion_matrix(y, told).tolist()
        balanced = 100 * balanced_accuracy_score(y, told)
        assert record.metrics["test/balanced_acc"] == pytest.approx(balanced, abs=1e-5)  # torchmetrics' is float32
    rest = 1 - (of if y.ndim == 2 or is_binary else np.eye(logits.shape[1], dtype=int)[of])
    told_rest = 1 - (told.astype(int) if y.ndim == 2 or is_binary else np.eye(logits.shape[1], dtype=int)[told])
    assert found == pytest.approx({
        "acc": 100 * ((told == y).mean() if y.ndim == 2 else accuracy_score(y, told)),
        "auc": roc_auc_score(of, scores, average="macro", multi_class="ovr"),
        "f1": 100 * f1_score(of, told, average=average),
        "sensitivity": 100 * recall_score(of, told, average=average),
        "specificity": 100 * recall_score(rest, told_rest, average="binary" if rest.ndim == 1 else "macro"),
    }, abs=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    "name, arrays, task",
    [
        ("chestmnist", {"labels": 14, "channels": 1}, "multi_label"),
        ("retinamnist", {"classes": 5}, "ordinal"),
        ("breastmnist", {"classes": 2, "channels": 1}, "multi_class"),
    ],
)
def test_a_run_on_a_set_of_medmnist(name, arrays, task, config, tmp_path):
    np.savez(tmp_path / f"{name}.npz", **medmnist_arrays(**arrays))
    run = config("data=medmnist", f"data.set={name}", f"exec.data={tmp_path}", f"exec.outputs={tmp_path / 'o'}",
                 "host=resnet8", "host.width=4", "schedule.epochs=2", "donor.schedule.epochs=1", "exec.device=cpu",
                 "regularizer.mixup=0.2", "regularizer.ema=0.9", "exec.similarity.resamples=2",
                 "exec.probe.epochs=[0,-1]", "strategy=auto_rgn", "data.class_weights=balanced",
                 "donor.data.class_weights=balanced")  # fmt: skip
    plan = plan_run(run)
    record = execute(plan)
    assert record.status == "completed", record.traceback
    metrics = record.metrics
    assert ("test/mae" in metrics) == ("val/mae" in metrics) == (task == "ordinal")
    assert record.data["task"] == task
    assert set(metrics) <= set(recorded(task, run.exec.probe.thresholds)) and set(metrics) == set(record.units)
    assert {f"{split}/{name}" for split in ("val", "test") for name in metrics_of(task)} <= set(metrics)
    curves = pd.read_csv(tmp_path / "o" / "runs" / record.key / "curves.csv")
    assert {f"val/{name}" for name in metrics_of(task)} <= set(curves)
    as_scikit_learn_has_it(read_predictions(plan.folder), record, plan.config.images().test)
    measured = set(record.similarity["fixed"])
    assert measured == {"frechet", "a_distance", "logme"} | ({"leep"} if task != "multi_label" else set())
