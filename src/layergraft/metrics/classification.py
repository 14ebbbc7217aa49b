"""Metrics of a whole split's logits, registered. Loss and accuracy, which are counted batch by batch, are `tasks.Task`'s."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from layergraft.config.metric_registry import metric

if TYPE_CHECKING:
    from torch import Tensor


@metric("multi_class", "ordinal", unit="%", better=max)
def balanced_acc(logits_NC: Tensor, y_N: Tensor) -> float:
    """Balanced accuracy (macro recall): the mean over the classes that occur of the share of their images told right.
    Source: Brodersen et al., The Balanced Accuracy and Its Posterior Distribution, 2010."""
    from torchmetrics.functional.classification import multiclass_accuracy

    num_classes = logits_NC.shape[1]
    recall_C = multiclass_accuracy(logits_NC, y_N, num_classes, average="none", validate_args=False)
    # torchmetrics' own average counts a class that is predicted but never occurs as 0.
    return 100 * recall_C[y_N.bincount(minlength=num_classes) > 0].mean().item()


@metric("multi_class", "ordinal", unit="%", better=min)
def ece(logits_NC: Tensor, y_N: Tensor) -> float:
    """Expected calibration error: by how much confidence and accuracy differ, over 15 bins of equal width.
    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, equation 5."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    # torchmetrics would take logits that all happen to lie in [0, 1] for probabilities.
    p_NC = logits_NC.softmax(1)
    return 100 * multiclass_calibration_error(p_NC, y_N, p_NC.shape[1], n_bins=15, validate_args=False).item()


@metric("multi_label", unit="0 to 1", better=max)
def auc(logits_NC: Tensor, y_N: Tensor) -> float:
    """Mean area under the ROC curves of the labels that some of the images have and some have not; nan where there is no
    such label. Source: Yang et al., MedMNIST v2, 2023."""
    from sklearn.metrics import roc_auc_score

    scores, labels = logits_NC.double().numpy(), y_N.numpy()
    mixed = [k for k in range(labels.shape[1]) if 0 < labels[:, k].sum() < len(labels)]
    values = [float(roc_auc_score(labels[:, k], scores[:, k])) for k in mixed]
    return sum(values) / len(values) if values else math.nan


@metric("ordinal", unit="classes", better=min)
def mae(logits_NC: Tensor, y_N: Tensor) -> float:
    """Mean distance between label and prediction, in classes."""
    return (logits_NC.argmax(1) - y_N).abs().double().mean().item()
