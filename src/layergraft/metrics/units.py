"""The units of the figures that runs are compared by."""

from __future__ import annotations

UNITS = {"acc": "%", "aulc": "%", "auc": "0 to 1", "mae": "classes", "loss": "nats", "drift": "relative"}


def unit_of(metric: str) -> str:
    """`test/acc` -> `%`; differences of accuracies are in points, `steps_to/...` in steps."""
    part, _, name = metric.rpartition("/")
    if part == "steps_to":
        return "steps"
    return "points" if metric == "shock/acc" else UNITS[name]
