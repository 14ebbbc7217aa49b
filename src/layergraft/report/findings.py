"""All that a report says, computed once, for the page and for the Markdown. Imports no torch."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr, trim_mean

from layergraft.errors import UserError
from layergraft.report import contrasts
from layergraft.report.contrasts import CONTROLS, RANDOM, SCRATCH, Answer, Contrast, Design
from layergraft.report.table import NONE, Runs
from layergraft.stats import Difference, Shares, mean_difference, shares

LADDER = ("random", "moment_matched", "permuted", "covariance", "trained", "extracted", "end_to_end", "self")
# What a step up the ladder adds: (of, less).
STEPS = {
    "scale: moments matched, less random": ("moment_matched", "random"),
    "spectrum: the kernels' covariance, less their moments": ("covariance", "moment_matched"),
    "learned structure: trained, less the covariance": ("trained", "covariance"),
    "in all: trained, less random": ("trained", "random"),
    "co-adaptation: cut from a network, less trained alone": ("end_to_end", "trained"),
}


@dataclass(frozen=True)
class Findings:
    runs: Runs
    design: Design
    contrasts: list[Contrast]
    lacking: list[str]
    """Contrasts that these runs do not have, a line each."""
    answers: list[Answer]
    baseline: str | None
    """What gains are over: scratch, or else the random frozen layer, or else none."""
    gains: dict[str, pd.DataFrame]
    """Metric -> the cells' differences to the baseline (`contrasts.gains`)."""
    across: pd.DataFrame
    """A row an arm: cells, gain (interquartile mean over cells), better (share of cells above the baseline)."""
    shares: Shares | None
    shares_of: str
    ladder: pd.DataFrame
    steps: pd.DataFrame
    shocks: pd.DataFrame
    recovery: pd.DataFrame
    similar: pd.DataFrame
    """A row a measure of similarity: its rank correlation with the gain over cells, one a seed."""
    by_run: pd.DataFrame
    """The grafted runs with their `gain` in test/acc."""
    unpaired: list[str]
    """Keys of runs that have no partner of their seed in the baseline."""


def find(runs: Runs) -> Findings:
    design = contrasts.design(runs)
    baseline = next((name for name in (SCRATCH, RANDOM) if 0 < len(design.arm(name)) < len(design.runs)), None)
    compared, lacking = contrasts.named(design, runs.contrasts)
    gains = (
        {metric: contrasts.gains(design, baseline, metric) for metric in ("test/acc", "val/aulc")} if baseline else {}
    )
    by_run = contrasts.paired(design, baseline, "test/acc") if baseline else design.runs.assign(gain=np.nan)
    by_run = by_run[by_run.site != NONE]
    varied, of = _shares(design)
    ladder, steps = _ladder(design, gains.get("test/acc"))
    unpaired = sorted(by_run[by_run.gain.isna()].key) if baseline else []
    return Findings(
        runs, design, compared, lacking, contrasts.answers(design), baseline, gains,
        _across(by_run.dropna(subset="gain")) if baseline else pd.DataFrame(), varied, of, ladder, steps,
        _shocks(design), _recovery(design), _similar(by_run.dropna(subset="gain")), by_run, unpaired,
    )  # fmt: skip


def _across(by_run: pd.DataFrame) -> pd.DataFrame:
    """Agarwal et al. 2021: the interquartile mean over cells, and the probability of improvement; here paired, one figure a
    seed, so that the interval is of the seeds. Seeds count that have every cell of the arm."""
    rows = []
    for arm, there in by_run.groupby("arm", sort=False):
        table = there.pivot_table(index="seed", columns=["setting", "site"], values="gain")
        cells = table.dropna().to_numpy()
        if len(cells):
            better = (np.sign(cells) / 2 + 0.5).mean(1)
            rows.append({"arm": arm, "cells": cells.shape[1], "n": len(cells), "seeds left out": len(table) - len(cells),
                         "mean": mean_difference(cells.mean(1)), "iqm": mean_difference(trim_mean(cells, 0.25, axis=1)),
                         "better": mean_difference(100 * better)})  # fmt: skip
    return pd.DataFrame(rows)


def _shares(design: Design) -> tuple[Shares | None, str]:
    """Of all grafted runs where that is a balanced design, else of those whose donor learned something, where that is one."""
    grafted = design.runs[design.runs.site != NONE]
    learned = grafted[~grafted.donor.isin(CONTROLS)]
    names = [name for name in design.axes if name != "seed"]
    found = []
    for runs, of in ((grafted, "all runs with a donor"), (learned, "the runs whose donor learned something")):
        if runs["test/acc"].notna().sum() > 1:
            there = runs.dropna(subset="test/acc")
            result = shares(there["test/acc"], {name: there[name].astype(str) for name in names}, there.seed)
            found += [(result, of)] if result is not None else []
    return next((pair for pair in found if pair[0].balanced), found[0] if found else (None, ""))


def _ladder(design: Design, cells: pd.DataFrame | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rungs: the cells of donors in the order of LADDER; steps: what each adds, by strategy, over all cells."""
    donors = [name for name in LADDER if name in set(design.runs.donor)]
    if cells is None or not len(cells) or len(donors) < 3:
        return pd.DataFrame(), pd.DataFrame()
    rungs = cells[cells.donor.isin(donors)].copy()
    rungs["donor"] = pd.Categorical(rungs.donor, donors, ordered=True)
    rungs = rungs.sort_values(["setting", "donor"], kind="stable").astype({"donor": str})
    rungs["place"] = rungs.setting + ", " + rungs.site
    rows = []
    for strategy in rungs.strategy.unique():
        for what, (of, less) in STEPS.items():
            if {of, less} <= set(rungs.donor[rungs.strategy == strategy]):
                terms = [f"+strategy={strategy},donor={of}", f"-strategy={strategy},donor={less}"]
                try:
                    found = contrasts.contrast(design, what, terms).difference
                except UserError:
                    continue
                rows += [{"strategy": strategy, "step": what, "difference": found}] if found is not None else []
    return rungs, pd.DataFrame(rows)


def _of_cells(design: Design, metric: str) -> pd.DataFrame:
    """A row a cell with its mean of `metric` over seeds, as a Difference (to zero)."""
    if metric not in design.runs:
        return pd.DataFrame()
    rows = []
    for (setting, site, arm), there in design.runs.dropna(subset=metric).groupby(
        ["setting", "site", "arm"], sort=False
    ):
        same = {name: there[name].iloc[0] for name in design.axes if name != "seed"}
        by_seed = there.groupby("seed")[metric].mean()
        rows.append(same | {"setting": setting, "site": site, "arm": arm, "difference": mean_difference(by_seed)})
    return pd.DataFrame(rows)


def _shocks(design: Design) -> pd.DataFrame:
    return _of_cells(design, "shock/acc")


def _recovery(design: Design) -> pd.DataFrame:
    """A row an arm: how many of its runs made the shock good (validation loss of the intact host), after how many steps."""
    if "steps_to/recover" not in design.runs or "shock/loss" not in design.runs:
        return pd.DataFrame()
    hit = design.runs.dropna(subset="shock/loss")
    rows = [
        {"arm": arm, "runs": len(there), "shocked": int((there["shock/loss"] > 0).sum()),
         "recovered": int(there["steps_to/recover"].notna().sum()), "median steps": there["steps_to/recover"].median()}
        for arm, there in hit.groupby("arm", sort=False)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _similar(by_run: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation over the cells of one seed, then its mean over seeds. Arms are compared within themselves: a
    cell's gain is taken less its arm's mean."""
    rows = []
    for measure in measures_of(by_run):
        there = by_run.dropna(subset=measure)
        gain = there.gain - there.groupby(["arm", "seed"]).gain.transform("mean")
        found = []
        for _, seed in there.assign(gain=gain).groupby("seed"):
            if len(seed) >= 4 and seed[measure].nunique() >= 3 and seed.gain.nunique() > 1:
                found.append(float(spearmanr(seed[measure], seed.gain).statistic))
        if found:
            rows.append({"measure": measure.removeprefix("similarity/"), "difference": mean_difference(found),
                         "cells": len(there) // max(1, there.seed.nunique())})  # fmt: skip
    return pd.DataFrame(rows)


def measures_of(by_run: pd.DataFrame) -> list[str]:
    """The measures of similarity that take three values or more within a seed."""
    named = [name for name in by_run if name.startswith("similarity/")]
    return [name for name in named if by_run.groupby("seed")[name].nunique().max() >= 3]


def curves(design: Design) -> pd.DataFrame:
    """Rows of a figure: setting, arm, epoch, mean validation accuracy over sites and seeds, and its interval."""
    read = {key: _accuracies(Path(folder)) for key, folder in zip(design.runs.key, design.runs.folder, strict=True)}
    rows = []
    for (setting, arm), group in _in_every_setting(design).groupby(["setting", "arm"], sort=False):
        longest = max((len(read[key]) for key in group.key), default=0)
        if not longest:
            continue
        # A run that was stopped early stays where it was.
        padded = {key: read[key] + [read[key][-1]] * (longest - len(read[key])) for key in group.key if read[key]}
        known = group[group.key.isin(padded)]  # of some the curves may be gone
        by_seed = [np.mean([padded[key] for key in there.key], axis=0) for _, there in known.groupby("seed")]
        same = {name: group[name].iloc[0] for name in design.axes if name != "seed" and group[name].nunique() == 1}
        for epoch, values in enumerate(zip(*by_seed, strict=True), start=1):
            found = mean_difference(values)
            half = found.half_width if math.isfinite(found.half_width) else 0.0
            rows.append(same | {"setting": setting, "arm": arm, "epoch": epoch, "mean": found.mean, "n": found.n,
                                "low": found.mean - half, "high": found.mean + half})  # fmt: skip
    return pd.DataFrame(rows)


def _in_every_setting(design: Design) -> pd.DataFrame:
    """The runs, with those that have no source (scratch, a random donor) in the settings of every source."""
    sourced = [name for name in design.of_setting if (design.runs[name] == NONE).any()]
    if not sourced:
        return design.runs
    without = (design.runs[sourced] == NONE).all(axis=1)
    places = design.runs[~without][[*design.of_setting, "setting"]].drop_duplicates()
    keys = [name for name in design.of_setting if name not in sourced]
    spread = design.runs[without].drop(columns=["setting", *sourced]).merge(places, on=keys)
    return pd.concat([design.runs[~without], spread], ignore_index=True)


def _accuracies(folder: Path) -> list[float]:
    try:
        with open(folder / "curves.csv", newline="") as file:
            return [float(row["val/acc"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def words(found: Difference | None) -> str:
    """`+1.2 ± 0.8`, and what could have been seen where nothing was."""
    if found is None:
        return "no seed has all of it"
    if found.resolved:
        return f"{found}"
    if math.isinf(found.half_width):
        return f"{found}: one seed tells nothing" if found.n == 1 else f"{found}: the seeds show no spread"
    if math.isinf(found.detectable):
        return f"{found}: the same in all {found.n} seeds"
    return f"{found}, not resolved; {found.n} seeds would have shown {found.in_digits(found.detectable)}, 4 times in 5"


def seeds_text(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"
