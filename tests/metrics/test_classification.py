"""The metrics of a split's logits, against scikit-learn and their definitions."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from layergraft.config.metric_registry import TASKS, metrics_of
from layergraft.metrics import auc, balanced_acc, ece, mae
from layergraft.metrics.tasks import Task
from layergraft.training.evaluation import Evaluation

LOGITS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(40) % 4
LABELS = (torch.arange(160).view(40, 4) * 7 % 3 == 0).long()


def test_every_task_has_its_metrics():
    assert tuple(task.name for task in Task) == TASKS
    assert {task: list(metrics_of(task)) for task in TASKS} == {
        "multi_class": ["acc", "loss", "balanced_acc", "ece"],
        "multi_label": ["acc", "loss", "auc"],
        "ordinal": ["acc", "loss", "balanced_acc", "ece", "mae"],
    }


@pytest.mark.parametrize("absent", [False, True])
def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur(absent):
    labels = CLASSES.clamp(max=2) if absent else CLASSES.clone()  # class 3 is predicted all the same
    labels[:9] = 0
    with pytest.warns(UserWarning) if absent else pytest.MonkeyPatch.context():  # of scikit-learn
        expected = balanced_accuracy_score(labels, LOGITS.argmax(1))
    assert balanced_acc(LOGITS, labels) == pytest.approx(100 * expected)


def calibration_error(p_NC, y_N, bins=15):
    """As Guo et al. 2017 write it."""
    confidence, right = p_NC.max(1), p_NC.argmax(1) == y_N
    gap = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            gap += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return 100 * gap


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_calibration_error_is_of_probabilities_whatever_the_logits_look_like(scale):
    logits = (
        (LOGITS - LOGITS.min()) * scale / (LOGITS.max() - LOGITS.min())
    )  # at a scale up to 1 as probabilities would
    expected = calibration_error(logits.softmax(1).double().numpy(), CLASSES.numpy())
    assert ece(logits, CLASSES) == pytest.approx(expected, abs=1e-4)


def test_area_under_the_curve_is_of_labels_that_some_images_have():
    assert auc(LOGITS, LABELS) == pytest.approx(roc_auc_score(LABELS, LOGITS))
    never = torch.cat([LABELS, torch.zeros(40, 1).long()], 1)  # a label that no image has is no part of the mean
    assert auc(torch.cat([LOGITS, LOGITS[:, :1]], 1), never) == pytest.approx(roc_auc_score(LABELS, LOGITS))
    assert math.isnan(auc(LOGITS, torch.ones_like(LABELS)))


def test_mean_distance_of_classes():
    assert mae(LOGITS, CLASSES) == pytest.approx(np.abs(LOGITS.argmax(1).numpy() - CLASSES.numpy()).mean())


@pytest.mark.parametrize("task", Task)
def test_batches_are_judged_as_a_whole_and_a_network_that_diverged_by_its_loss(task):
    labels = LABELS if task is Task.multi_label else CLASSES
    judged, diverged = Evaluation(task), Evaluation(task)
    for rows in (slice(0, 30), slice(30, 40)):
        judged.add(LOGITS[rows], labels[rows])
        diverged.add(LOGITS[rows] * math.inf, labels[rows])
    found = judged.metrics()
    assert list(found) == list(metrics_of(task.name))
    for name, metric in metrics_of(task.name).items():
        if metric.function is not None:
            assert found[name] == metric.function(LOGITS, labels) and math.isnan(diverged.metrics()[name])
