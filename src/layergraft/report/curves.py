"""Curves by epoch, for the figures: the means over seeds, with their intervals. Imports no torch."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from layergraft.report.contrasts import Design, of_source
from layergraft.report.table import NONE
from layergraft.stats import complete, mean_difference

ALL_SITES = "all"


def validation_accuracies(runs: pd.DataFrame) -> dict[str, list[float]]:
    """Key -> validation accuracy in % after each epoch; empty where the file is gone."""
    return {key: _accuracies(Path(folder)) for key, folder in zip(runs.key, runs.folder, strict=True)}


def _accuracies(folder: Path) -> list[float]:
    try:
        with open(folder / "curves.csv", newline="") as file:
            return [float(row["val/acc"]) for row in csv.DictReader(file)]
    except (FileNotFoundError, KeyError, ValueError):
        return []


def learning_curves(design: Design, read: Mapping[str, list[float]]) -> pd.DataFrame:
    """Rows of a figure: setting, arm, site, epoch, mean validation accuracy over seeds, n of them, and its interval. Of each
    site, and with site ALL_SITES over them all, of the seeds that have every one; no graft has no site."""
    rows: list[dict[str, Any]] = []
    for (setting, arm), group in _in_every_setting(design).groupby(["setting", "arm"], sort=False):
        known = group[group.key.map(lambda key: bool(read[key]))]  # of some the curves may be gone
        sites = list(known.site.unique())
        for site in [*sites, *([ALL_SITES] if sites and sites != [NONE] else [])]:
            there = known if site == ALL_SITES else known[known.site == site]
            same = {name: there[name].iloc[0] for name in design.axes if there[name].nunique() == 1}
            rows += _points(there, read, "site", same | {"setting": setting, "arm": arm, "site": site}, 1)
    return pd.DataFrame(rows)


def recovery_curves(design: Design, read: Mapping[str, list[float]]) -> pd.DataFrame:
    """Rows of a figure, as those of `learning_curves`, for each `panel`, a site with hosts whose weights have one origin: from
    before the first step (epoch 0) on, of each arm over all settings. No graft is at every site, and `intact` is its accuracy
    before the first step."""
    if "step0/acc" not in design.runs:
        return pd.DataFrame()
    start = dict(zip(design.runs.key, design.runs["step0/acc"], strict=True))
    whole = {key: [start[key], *curve] for key, curve in read.items() if curve and not math.isnan(start[key])}
    spread = _in_every_setting(design)
    spread = spread[spread.key.isin(whole)]
    without = spread[spread.donor == "none"]
    rows: list[dict[str, Any]] = []
    origins = spread.host_from.nunique()
    for (site, origin), there in spread[spread.site != NONE].groupby(["site", "host_from"], sort=False):
        beside = without[without.setting.isin(there.setting) & (without.host_from == origin)]
        panel = {"site": site, "panel": f"{site}, {origin}" if origins > 1 else site}
        if len(beside):
            panel["intact"] = float(beside["step0/acc"].mean())
        for arm, group in [*beside.groupby("arm", sort=False), *there.groupby("arm", sort=False)]:
            same = {name: group[name].iloc[0] for name in design.axes if group[name].nunique() == 1}
            rows += _points(group, whole, "setting", same | panel | {"arm": arm}, 0)
    return pd.DataFrame(rows)


def _points(
    runs: pd.DataFrame, read: Mapping[str, Sequence[float]], column: str, same: dict[str, Any], first: int
) -> Iterator[dict[str, Any]]:
    """A row an epoch, from `first` on: the mean over the levels of `column`, and over the seeds that have them all."""
    curve_SCE = _curves(runs, read, column)
    for epoch, values in enumerate(curve_SCE.mean(1).T if len(curve_SCE) else (), start=first):
        found = mean_difference(values)
        half = found.half_width if math.isfinite(found.half_width) else 0.0
        yield same | {
            "epoch": epoch,
            "mean": found.mean,
            "n": found.n,
            "low": found.mean - half,
            "high": found.mean + half,
        }


def _curves(runs: pd.DataFrame, read: Mapping[str, Sequence[float]], column: str) -> np.ndarray:
    """Seeds x levels of `column` x epochs, without a gap. A run that was stopped early stays where it was."""
    longest = max(len(read[key]) for key in runs.key)
    curve_SCE = np.full((runs.seed.nunique(), runs[column].nunique(), longest), np.nan)
    for (s, c), keys in runs.groupby([pd.factorize(runs.seed)[0], pd.factorize(runs[column])[0]]).key:
        curve_SCE[s, c] = np.mean([[*read[key], *[read[key][-1]] * (longest - len(read[key]))] for key in keys], axis=0)
    seeds_S, cells_C = complete(curve_SCE[:, :, 0])
    return np.asarray(curve_SCE[seeds_S][:, cells_C])


def _in_every_setting(design: Design) -> pd.DataFrame:
    """The runs, with those that have no source (no graft, a random donor) in the settings of every source."""
    sourced = [name for name in design.of_setting if of_source(name) and (design.runs[name] == NONE).any()]
    if not sourced:
        return design.runs
    without = (design.runs[sourced] == NONE).all(axis=1)
    cells = design.runs[~without][[*design.of_setting, "setting"]].drop_duplicates()
    keys = [name for name in design.of_setting if name not in sourced]
    spread = design.runs[without].drop(columns=sourced).merge(cells, on=keys, how="left", suffixes=("_own", ""))
    spread["setting"] = spread.setting.fillna(spread.pop("setting_own"))
    return pd.concat([design.runs[~without], spread], ignore_index=True)
