"""What is learnt from labels: the loss, what counts as right, and the figures that go with a kind of label."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Of the figures that runs are compared by.
UNITS = {"acc": "%", "aulc": "%", "auc": "0 to 1", "mae": "classes", "loss": "nats", "drift": "relative"}


class Task(Enum):
    """As in MedMNIST, whose losses and figures these are (Yang et al., MedMNIST v2, 2023)."""

    multi_class = "multi_class"
    """One class of several: cross-entropy, accuracy."""
    multi_label = "multi_label"
    """Several labels, each there or not, y (N, labels): binary cross-entropy; accuracy over all labels at a threshold of
    0.5, and the mean area under the labels' ROC curves, `auc`."""
    ordinal = "ordinal"
    """Classes in an order: cross-entropy, accuracy, and the mean distance between label and prediction, `mae`."""

    def loss(self, logits_NC: Tensor, y_N: Tensor, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
        """Mean or sum over the images; where labels were mixed, `y_N` is (N, C) of shares."""
        from torch.nn import functional as F

        if self is not Task.multi_label:
            return F.cross_entropy(logits_NC, y_N, reduction=reduction, label_smoothing=label_smoothing)
        target = y_N.to(logits_NC.dtype) * (1 - label_smoothing) + label_smoothing / 2
        each = F.binary_cross_entropy_with_logits(logits_NC, target, reduction="none").mean(1)
        return each.mean() if reduction == "mean" else each.sum()

    def num_right(self, logits_NC: Tensor, y_N: Tensor) -> Tensor:
        """Images that are told right; of several labels, the share of them. A scalar, float64."""
        if self is Task.multi_label:
            return ((logits_NC > 0) == (y_N > 0.5)).double().mean(1).sum()
        return (logits_NC.argmax(1) == y_N).double().sum()

    def figures(self, logits_NC: Tensor, y_N: Tensor) -> dict[str, float]:
        """Beside loss and accuracy. `auc` is of the labels that some of the images have and some have not, nan where
        there is no such label; from 0 to 1."""
        if self is Task.ordinal:
            return {"mae": (logits_NC.argmax(1) - y_N).abs().double().mean().item()}
        if self is Task.multi_label:
            import numpy as np
            from sklearn.metrics import roc_auc_score

            scores, labels = logits_NC.double().cpu().numpy(), y_N.cpu().numpy()
            if not np.isfinite(scores).all():
                return {"auc": float("nan")}  # the loss says that it diverged
            mixed = [k for k in range(labels.shape[1]) if 0 < labels[:, k].sum() < len(labels)]
            values = [float(roc_auc_score(labels[:, k], scores[:, k])) for k in mixed]
            return {"auc": sum(values) / len(values) if values else float("nan")}
        return {}


def unit_of(metric: str) -> str:
    """`test/acc` -> `%`; differences of accuracies are in points, `steps_to/...` in steps."""
    part, _, name = metric.rpartition("/")
    if part == "steps_to":
        return "steps"
    return "points" if metric == "shock/acc" else UNITS[name]
