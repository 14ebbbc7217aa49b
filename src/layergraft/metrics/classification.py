"""Metrics of a whole split's logits, registered. Loss and accuracy, which are counted batch by batch, are `tasks.Task`'s.

`auc`, `f1`, `sensitivity` and `specificity` follow one rule. Of two classes they are of class 1, the positive one. Of more
classes they are the mean over the classes that occur in the labels, each against the rest. Of a multi-label set they are the
mean over the labels, each predicted where its logit is above 0. A class or label for which the value is not defined (no
image has it, or none lacks it) is left out of the mean; where none is left the value is nan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layergraft.config.metric_registry import TASKS, metric

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


@metric(*TASKS, unit="0 to 1", better=max)
def auc(logits_NC: Tensor, y_N: Tensor) -> float:
    """Area under the ROC curve: how often an image of a class has a higher score for it than another image has. Of two classes,
    of class 1; of more, the mean over those that occur, each against the rest by its probability; of a multi-label set, the mean
    over the labels that some images have and some have not. nan where there are no such classes or labels.
    Source: Hanley & McNeil, 1982, by ranks (Mann & Whitney); the mean over labels as in Yang et al., MedMNIST v2, 2023."""
    import torch
    from torch.nn import functional as F

    score_NK, is_NK = logits_NC.double(), y_N
    if y_N.ndim == 1 and logits_NC.shape[1] == 2:
        score_NK, is_NK = score_NK[:, 1:] - score_NK[:, :1], y_N[:, None]
    elif y_N.ndim == 1:
        score_NK, is_NK = score_NK.softmax(1), F.one_hot(y_N, logits_NC.shape[1])
    # Not torchmetrics', which sums in float32 and takes ten times as long on the few hundred images of most epochs.
    sorted_KN, order_KN = score_NK.T.contiguous().sort()
    below_KN, up_to_KN = (torch.searchsorted(sorted_KN, sorted_KN, right=right) for right in (False, True))
    ranks_KN = (below_KN + up_to_KN + 1).double() / 2  # the mean rank of those that are equal
    is_KN = is_NK.T.gather(1, order_KN).double()
    with_K = is_KN.sum(1)
    without_K = len(y_N) - with_K
    above_K = (ranks_KN * is_KN).sum(1) - with_K * (with_K + 1) / 2
    return (above_K / (with_K * without_K)).nanmean().item()  # 0 / 0 where all of the images have it, or none


@metric(*TASKS, unit="%", better=max)
def f1(logits_NC: Tensor, y_N: Tensor) -> float:
    """F1 score, the harmonic mean of precision and sensitivity. Of two classes, of class 1; of more, the mean over those that
    occur; of a multi-label set, the mean over the labels that some image has. nan where there are none."""
    tp_K, fp_K, _, fn_K = _counts(logits_NC, y_N)
    return 100 * float((2 * tp_K / (2 * tp_K + fp_K + fn_K))[tp_K + fn_K > 0].mean())


@metric(*TASKS, unit="%", better=max)
def sensitivity(logits_NC: Tensor, y_N: Tensor) -> float:
    """Sensitivity (recall): the share of a class's images that are told to be of it. Of two classes, of class 1; of more, the
    mean over those that occur, which is `balanced_acc`; of a multi-label set, the mean over the labels that some image has.
    nan where there are none."""
    tp_K, _, _, fn_K = _counts(logits_NC, y_N)
    return 100 * float((tp_K / (tp_K + fn_K)).nanmean())


@metric(*TASKS, unit="%", better=max)
def specificity(logits_NC: Tensor, y_N: Tensor) -> float:
    """Specificity: the share of the other images that are told not to be of a class. Of two classes, of class 1, so that it is
    the sensitivity of class 0; of more, the mean over those that occur; of a multi-label set, the mean over the labels that
    some image lacks. nan where there are none."""
    _, fp_K, tn_K, _ = _counts(logits_NC, y_N)
    return 100 * float((tn_K / (tn_K + fp_K)).nanmean())


@metric("ordinal", unit="classes", better=min)
def mae(logits_NC: Tensor, y_N: Tensor) -> float:
    """Mean distance between label and prediction, in classes."""
    return (logits_NC.argmax(1) - y_N).abs().double().mean().item()


def confusion(logits_NC: Tensor, y_N: Tensor) -> list[list[int]]:
    """How many images of each class (rows) are told to be of which class (columns)."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    matrix_CC = multiclass_confusion_matrix(logits_NC.argmax(1), y_N, logits_NC.shape[1], validate_args=False)
    rows: list[list[int]] = matrix_CC.tolist()
    return rows


def _counts(logits_NC: Tensor, y_N: Tensor) -> Tensor:
    """True positives, false positives, true negatives, false negatives, (4, K) float64: of class 1 of two, of each class of
    more that occurs, of each label."""
    from torchmetrics.functional.classification import multiclass_stat_scores, multilabel_stat_scores

    size = logits_NC.shape[1]
    if y_N.ndim == 2:  # torchmetrics would take logits that all happen to lie in [0, 1] for probabilities
        counts_K5 = multilabel_stat_scores((logits_NC > 0).long(), y_N, size, average="none", validate_args=False)
    else:
        counts_C5 = multiclass_stat_scores(logits_NC, y_N, size, average="none", validate_args=False)
        counts_K5 = counts_C5[1:] if size == 2 else counts_C5[counts_C5[:, 4] > 0]
    return counts_K5.view(-1, 5)[:, :4].T.double()  # of a single label torchmetrics gives no row
