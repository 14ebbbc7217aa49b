"""What is learnt from labels: the loss, and what counts as right."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Task(Enum):
    """As in MedMNIST, whose losses these are (Yang et al., MedMNIST v2, 2023). The metrics of each are registered
    (`config.metrics`)."""

    multi_class = "multi_class"
    """One class of several: cross-entropy, accuracy."""
    multi_label = "multi_label"
    """Several labels, each there or not, y (N, labels): binary cross-entropy; accuracy over all labels at a threshold of
    0.5."""
    ordinal = "ordinal"
    """Classes in an order: cross-entropy, accuracy."""

    def loss(
        self,
        logits_NC: Tensor,
        y_N: Tensor,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Mean or sum over the images; where labels were mixed, `y_N` is (N, C) of shares.

        With `class_weights` (C,) an image's loss counts as much as its class's weight, and a mixed image's is the mixture of what
        its two images' losses count; the mean is still over the number of images, so that it does not depend on how a batch is
        shared out. Of several labels, a weight is that of having the label (pos_weight).
        """
        from torch.nn import functional as F

        if self is Task.multi_label:
            target, weight = y_N.to(logits_NC.dtype) * (1 - label_smoothing) + label_smoothing / 2, None
            if class_weights is not None:
                having, lacking = y_N * class_weights, 1 - y_N
                weight = having + lacking
                target = (having * (1 - label_smoothing) + weight * label_smoothing / 2) / weight
            each = F.binary_cross_entropy_with_logits(logits_NC, target, weight, reduction="none").mean(1)
            return each.mean() if reduction == "mean" else each.sum()
        if class_weights is not None:
            y_N = (y_N if y_N.ndim == 2 else F.one_hot(y_N, len(class_weights))) * class_weights
            # torch's own smoothing takes each row's sum for 1; here it is the image's weight.
            y_N, label_smoothing = y_N.lerp(y_N.mean(1, keepdim=True).expand_as(y_N), label_smoothing), 0.0
        return F.cross_entropy(logits_NC, y_N, reduction=reduction, label_smoothing=label_smoothing)

    def num_right(self, logits_NC: Tensor, y_N: Tensor) -> Tensor:
        """Images that are told right; of several labels, the share of them. A scalar, float64."""
        if self is Task.multi_label:
            return ((logits_NC > 0) == (y_N > 0.5)).double().mean(1).sum()
        return (logits_NC.argmax(1) == y_N).double().sum()
