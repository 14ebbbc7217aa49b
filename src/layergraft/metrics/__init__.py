"""What is measured: the loss of a task, the metrics that are registered, distances between sets of features."""

from layergraft.metrics.classification import auc, balanced_acc, confusion, ece, f1, mae, sensitivity, specificity

__all__ = ["auc", "balanced_acc", "confusion", "ece", "f1", "mae", "sensitivity", "specificity"]
