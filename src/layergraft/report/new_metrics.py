"""Metrics that were registered after runs were done: computed from the predictions that the runs have kept. Imports torch when
there is something to compute, not before."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from layergraft.config.metric_registry import Metric, lookup
from layergraft.errors import counted
from layergraft.store.predictions import PREDICTIONS, labels_and_logits, read_predictions
from layergraft.store.records import read_record

if TYPE_CHECKING:
    from layergraft.report.table import Runs


def add_metrics(runs: Runs, names: Iterable[str]) -> None:
    """Fill in those of `names` that are metrics of the test split, for completed runs whose records lack them. A run whose
    predictions are gone goes on lacking them, and a note says so. Raises UserError for predictions that cannot be read."""
    for name in dict.fromkeys(names):
        metric = lookup(name)
        if not name.startswith("test/") or metric is None or metric.function is None:
            continue
        column = runs.table[name] if name in runs.table else pd.Series(math.nan, index=runs.table.index)
        lacking = runs.table.folder[(runs.table.status == "completed") & column.isna()]
        found = {index: _computed(metric, Path(folder)) for index, folder in lacking.items()}
        gone = sum(value is None for value in found.values())
        if gone:
            runs.notes.append(
                f"{name}: {counted(gone, 'run')} without it, and without {PREDICTIONS} to compute it from"
            )
        known = {index: value for index, value in found.items() if value is not None and math.isfinite(value)}
        if known:
            runs.table[name] = column.fillna(pd.Series(known))
            runs.units[name] = metric.unit


def _computed(metric: Metric, folder: Path) -> float | None:
    """The metric of a run's predictions; nan where it is not of the run's task or not defined, None where they are gone."""
    if not (folder / PREDICTIONS).exists():
        return None
    record = read_record(folder)
    assert record is not None and metric.function is not None  # it was completed; `add_metrics` has looked
    if record.data["task"] not in metric.tasks:
        return math.nan
    import torch

    y_N, logits_NC = map(torch.from_numpy, labels_and_logits(read_predictions(folder)))
    return float(metric.function(logits_NC, y_N)) if bool(logits_NC.isfinite().all()) else math.nan
