"""The metrics of a split's logits, against scikit-learn and their definitions."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, recall_score, roc_auc_score

from layergraft.config.metric_registry import TASKS, metrics_of
from layergraft.metrics import auc, balanced_acc, confusion, ece, f1, mae, sensitivity, specificity
from layergraft.metrics.tasks import Task
from layergraft.training.evaluation import Evaluation

LOGITS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(40) % 4
LABELS = (torch.arange(160).view(40, 4) * 7 % 3 == 0).long()


def test_every_task_has_its_metrics():
    assert tuple(task.name for task in Task) == TASKS
    assert {task: list(metrics_of(task)) for task in TASKS} == {
        "multi_class": ["acc", "loss", "balanced_acc", "ece", "auc", "f1", "sensitivity", "specificity"],
        "multi_label": ["acc", "loss", "auc", "f1", "sensitivity", "specificity"],
        "ordinal": ["acc", "loss", "balanced_acc", "ece", "auc", "f1", "sensitivity", "specificity", "mae"],
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


ONE_VS_REST = (auc, f1, sensitivity, specificity)


def by_scikit_learn(score_NK, told_NK, is_NK):
    """The mean of ONE_VS_REST over what the columns are of."""
    columns = [(score_NK[:, k], told_NK[:, k], is_NK[:, k]) for k in range(is_NK.shape[1])]
    return (
        np.mean([roc_auc_score(of, score) for score, _, of in columns]),
        100 * np.mean([f1_score(of, told) for _, told, of in columns]),
        100 * np.mean([recall_score(of, told) for _, told, of in columns]),
        100 * np.mean([recall_score(of, told, pos_label=0) for _, told, of in columns]),
    )


def measured(logits, labels):
    return [metric(logits, labels) for metric in ONE_VS_REST]


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])  # 30: probabilities that float32 rounds to 1
def test_of_two_classes_they_are_of_the_positive_one(scale):
    logits, labels = LOGITS[:, :2] * scale, (CLASSES > 2).long()
    told = logits.argmax(1)
    expected = by_scikit_learn((logits[:, 1:] - logits[:, :1]).double(), told[:, None], labels[:, None])
    assert measured(logits, labels) == pytest.approx(expected, abs=1e-6)
    assert specificity(logits, labels) == sensitivity(logits.flip(1), 1 - labels)


@pytest.mark.parametrize("absent", [False, True])
def test_of_more_classes_they_are_the_mean_over_those_that_occur(absent):
    labels = CLASSES.clamp(max=2) if absent else CLASSES  # class 3 is predicted all the same
    there = labels.unique()
    told, of = ((each[:, None] == there).long() for each in (LOGITS.argmax(1), labels))
    expected = by_scikit_learn(LOGITS.double().softmax(1)[:, there], told, of)
    assert measured(LOGITS, labels) == pytest.approx(expected, abs=1e-6)
    assert sensitivity(LOGITS, labels) == pytest.approx(balanced_acc(LOGITS, labels))


@pytest.mark.parametrize("scale", [0.01, 1.0])  # 0.01: logits that may look like probabilities
@pytest.mark.parametrize("labels", [LABELS, LABELS[:, :1]], ids=["labels", "label"])
def test_of_several_labels_they_are_the_mean_over_the_labels(labels, scale):
    logits = (LOGITS[:, : labels.shape[1]] * scale).abs() if scale < 1 else LOGITS[:, : labels.shape[1]]
    expected = by_scikit_learn(logits.double(), (logits > 0).long(), labels)
    assert measured(logits, labels) == pytest.approx(expected, abs=1e-6)


def test_a_label_that_all_or_none_have_is_left_out_where_it_says_nothing():
    none, every = torch.zeros(40, 1).long(), torch.ones(40, 1).long()
    logits = torch.cat([LOGITS, LOGITS[:, :1]], 1)
    with_none, with_all = (measured(logits, torch.cat([LABELS, column], 1)) for column in (none, every))
    assert with_none[:3] == measured(LOGITS, LABELS)[:3] and with_all[0] == auc(LOGITS, LABELS)
    assert with_all[3] == specificity(LOGITS, LABELS)
    right = 100 * (LOGITS[:, 0] <= 0).double().mean().item()  # of those that lack a label that none has
    assert with_none[3] == pytest.approx((4 * specificity(LOGITS, LABELS) + right) / 5)


@pytest.mark.parametrize("label", [0, 1])
def test_of_one_class_alone_they_are_not_defined(label):
    """Of two classes; of more, the class has no rest."""
    labels, logits = torch.full((40,), label), LOGITS[:, :2]
    told = 100 * (logits.argmax(1) == label).double().mean().item()
    found = measured(logits, labels)
    known = [math.nan, math.nan, math.nan, told] if label == 0 else [math.nan, found[1], told, math.nan]
    assert found == pytest.approx(known, nan_ok=True) and (label == 0 or found[1] > told)
    assert np.isnan(measured(LOGITS, labels)).tolist() == [True, False, False, True]
    assert np.isnan(measured(LOGITS, torch.zeros(40, 4).long())).tolist() == [True, True, True, False]


def test_confusion_has_a_row_for_each_true_class():
    labels = CLASSES.clamp(max=2)
    assert confusion(LOGITS, labels) == confusion_matrix(labels, LOGITS.argmax(1)).tolist()
    assert confusion(torch.eye(3)[[0, 0, 1]], torch.tensor([2, 2, 1])) == [[0, 0, 0], [0, 1, 0], [2, 0, 0]]


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
