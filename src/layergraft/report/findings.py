"""All that a report says, computed once, for the page and for the Markdown. Imports no torch."""

from __future__ import annotations

import csv
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components
from scipy.stats import trim_mean

from layergraft.errors import UserError, counted, listing
from layergraft.report import contrasts
from layergraft.report.best_arms import Answer, answers
from layergraft.report.contrasts import CONTROLS, NO_GRAFT, RANDOM, Contrast, Design, of_source
from layergraft.report.table import NONE, Runs
from layergraft.stats import Shares, association, complete, factorial, mean_difference, shares, together
from layergraft.stats.association import corrected

ALL_SITES = "all"
LADDER = ("random", "moment_matched", "permuted", "covariance", "trained", "extracted", "end_to_end", "self")
# What a step up the ladder adds: (of, less).
STEPS = {
    "scale: moments matched, less random": ("moment_matched", "random"),
    "distribution: the weights shuffled, less their moments": ("permuted", "moment_matched"),
    "spectrum: the kernels' covariance, less their moments": ("covariance", "moment_matched"),
    "learned structure: trained, less the covariance": ("trained", "covariance"),
    "in all: trained, less random": ("trained", "random"),
    "co-adaptation: cut from a network, less trained alone": ("end_to_end", "trained"),
    "the host's own, less trained alone": ("self", "trained"),
}
IN_ALL = "in all: trained, less random"
TAKEN_APART = ("scale", "spectrum", "learned structure")  # these add up to it


@dataclass(frozen=True)
class Findings:
    """All that a report says, as figures."""

    runs: Runs
    design: Design
    contrasts: list[Contrast]
    lacking: list[str]
    """Contrasts that these runs do not have, a line each."""
    answers: list[Answer]
    baseline: str | None
    """What gains are over: no graft, or else the random frozen layer, or else none."""
    gains: dict[str, pd.DataFrame]
    """Metric -> the cells' differences to the baseline (`contrasts.gains`)."""
    across: pd.DataFrame
    """A row an arm: cells, n, lost (seeds), left_out (cells), and the Differences mean, iqm and better (a share of cells,
    in percent, less 50); n = 0 where no seed has all of it."""
    shares: Shares | None
    shares_of: str
    ladder: pd.DataFrame
    """A row a cell of a donor of LADDER, with its `difference` to the baseline."""
    steps: pd.DataFrame
    """A row a strategy and step of STEPS: its `difference`, all of one family."""
    shocks: pd.DataFrame
    """A row a cell: the `difference` of validation accuracy at step 0, grafted less intact."""
    recovery: pd.DataFrame
    """A row an arm: runs, shocked, recovered, and the median of steps to it, inf where most never did."""
    similar: pd.DataFrame
    """A row a measure of similarity: its `association` with the gain over sources."""
    by_run: pd.DataFrame
    """The grafted runs with their `gain` in test/acc."""
    notes: list[str]
    """What a reader must know of the comparisons: a line each."""


def find(runs: Runs) -> Findings:
    """Contrasts, gains, shares of variance and the rest, of these runs."""
    design = contrasts.design(runs)
    baseline = next((name for name in (NO_GRAFT, RANDOM) if 0 < len(design.arm(name)) < len(design.runs)), None)
    compared, lacking = contrasts.named(design, runs.contrasts)
    gained = ("test/acc", "val/aulc")
    gains = {metric: contrasts.gains(design, baseline, metric) for metric in gained} if baseline else {}
    by_run = contrasts.paired(design, baseline, "test/acc") if baseline else design.runs.assign(gain=np.nan)
    by_run = by_run[by_run.site != NONE]
    varied, of = _shares(runs, design)
    ladder, steps = _ladder(design, gains.get("test/acc"))
    answered = answers(design)
    return Findings(
        runs, design, compared, lacking, answered, baseline, gains,
        _across(by_run) if baseline else pd.DataFrame(), varied, of, ladder, steps,
        contrasts.of_cells(design, design.runs, "shock/acc") if "shock/acc" in design.runs else pd.DataFrame(),
        _recovery(design), _similar(design, by_run), by_run, [*runs.notes, *_notes(design, by_run, baseline, answered)],
    )  # fmt: skip


def _notes(design: Design, by_run: pd.DataFrame, baseline: str | None, answered: list[Answer]) -> list[str]:
    notes = []
    if len(answered) and design.runs["val/acc"].isna().all():
        notes.append("no run has a validation accuracy, so there is nothing to pick the best arm by")
    blind = by_run[by_run["test/acc"].isna()]
    if len(blind):
        number = counted(len(blind), "completed run")
        notes.append(f"{number} without a test accuracy: {listing(sorted(blind.key)[:5])}")
    alone = by_run[by_run.gain.isna() & by_run["test/acc"].notna()]
    if baseline and len(alone):
        such = f"{counted(len(alone), 'run')}, such as {listing(sorted(alone.key)[:5])}"
        notes.append(f"without a partner of the same seed in '{baseline}', so in no difference to it: {such}")
    for control in (NO_GRAFT, RANDOM):
        variants = design.arm(control).arm.unique()
        if 1 < len(variants) < design.runs.arm.nunique():
            names = listing(f"'{name}'" for name in variants)
            kinds = f"'{control}' comes in {len(variants)} kinds ({names})"
            own = "its own (that of its strategy, or else of full)" if control == NO_GRAFT else "its own"
            notes.append(f"{kinds}: an arm is compared with {own}, and where it has none, with their mean")
        if answered and len(variants) and not any(answer.gains.get(control) for answer in answered):
            where = f"no cell has a run of '{control}' with the seeds, site and surgery of the arms"
            notes.append(f"{where}, so nothing is compared with it")
    return notes


def _across(by_run: pd.DataFrame) -> pd.DataFrame:
    """Agarwal et al. 2021: the interquartile mean over cells, and the probability of improvement; here paired, one figure a
    seed, so that the interval is of the seeds. The arms are one family for each figure."""
    rows = []
    for arm, there in by_run.groupby("arm", sort=False):
        table = there.pivot_table(index="seed", columns=["setting", "site"], values="gain", dropna=False, observed=True)
        seeds_S, cells_C = complete(table.to_numpy())
        gain_SC = table.to_numpy()[seeds_S][:, cells_C]
        row = {"arm": arm, "cells": int(cells_C.sum()), "n": len(gain_SC), "left_out": int((table.notna().any() & ~cells_C).sum()),
               "lost": tuple(map(int, table.index[~seeds_S]))}  # fmt: skip
        if len(gain_SC):
            better = 50 * (np.sign(gain_SC) + 1).mean(1)
            row |= {"mean": mean_difference(gain_SC.mean(1)), "iqm": mean_difference(trim_mean(gain_SC, 0.25, axis=1)),
                    "better": mean_difference(better - 50)}  # fmt: skip
        rows.append(row)
    whole = [row for row in rows if row["n"]]
    for figure in ("mean", "iqm", "better"):
        for row, difference in zip(whole, together(row[figure] for row in whole), strict=True):
            row[figure] = difference
    return pd.DataFrame(rows)


def _shares(runs: Runs, design: Design) -> tuple[Shares | None, str]:
    """Of all runs with a donor where they were planned as all combinations of all levels, whatever became of them; else of
    those whose donor learned something, which controls do not have in all cells."""
    names = [name for name in design.axes if name != "seed"]
    planned = runs.table[runs.table.site != NONE]
    learned = planned[~planned.donor.isin(CONTROLS)]
    asked, of = planned, "all runs with a donor"
    if len(learned) and not factorial(planned[names].astype(str)):
        asked, of = learned, "the runs whose donor learned something"
    there = design.runs[design.runs.key.isin(asked.key) & design.runs["test/acc"].notna()]
    if len(there) < 2:
        return None, of
    found = shares(there["test/acc"], {name: there[name].astype(str) for name in names}, there.seed)
    lost = len(asked[names].astype(str).drop_duplicates()) - len(there[names].astype(str).drop_duplicates())
    return found and replace(found, num_lost_cells=found.num_lost_cells + lost), of


def _ladder(design: Design, cells: pd.DataFrame | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rungs: the cells of donors in the order of LADDER; steps: what each adds, by strategy, over all cells."""
    donors = [name for name in LADDER if name in set(design.runs.donor)]
    if cells is None or not len(cells) or len(donors) < 3:
        return pd.DataFrame(), pd.DataFrame()
    rungs = cells[cells.donor.isin(donors)].copy()
    rungs["donor"] = pd.Categorical(rungs.donor, donors, ordered=True)
    rungs = rungs.sort_values(["setting", "donor"], kind="stable").astype({"donor": str})
    rungs["cell"] = rungs.setting + ", " + rungs.site
    rows = []
    for strategy in rungs.strategy.unique():
        for what, (of, less) in STEPS.items():
            if {of, less} <= set(rungs.donor[rungs.strategy == strategy]):
                terms = [f"+strategy={strategy},donor={of}", f"-strategy={strategy},donor={less}"]
                with suppress(UserError):  # they share no cell
                    found = contrasts.contrast(design, what, terms).difference
                    rows.append({"strategy": strategy, "step": what, "difference": found})
    steps = pd.DataFrame([row for row in rows if row["difference"] is not None])
    return rungs, steps.assign(difference=together(steps.difference)) if len(steps) else steps


def _recovery(design: Design) -> pd.DataFrame:
    """How many of an arm's runs made the shock good (validation loss of the intact host), after how many steps."""
    needed = ["steps_to/recover", "shock/loss"]
    if not {*needed} <= {*design.runs}:
        return pd.DataFrame()
    hit = design.runs.dropna(subset=needed)
    told = {"shocked": hit["shock/loss"] > 0, "recovered": np.isfinite(hit["steps_to/recover"])}
    each = hit.assign(**told).groupby("arm", sort=False)
    counts = each.agg(runs=("key", "size"), shocked=("shocked", "sum"), recovered=("recovered", "sum"))
    return counts.assign(median=each["steps_to/recover"].median()).reset_index()


def _similar(design: Design, by_run: pd.DataFrame) -> pd.DataFrame:
    """Measure and gain, each less its mean over the sources of the same arm, site, host and seed, so that nothing but the
    source is compared; then a source's means, and their rank correlation. The measures are one family."""
    source = [name for name in design.swept if of_source(name)]
    alike = ["arm", "site", *(name for name in design.of_setting if name not in source)]
    rows = []
    for measure in _measures(by_run) if source else ():
        there = by_run.dropna(subset=[measure, "gain"])
        for number, columns in {"source": source, "cell": alike}.items():
            there[number] = there.groupby(columns, sort=False).ngroup()
        there = there[there.groupby(["cell", "seed"]).source.transform("nunique") > 1]  # held against another
        there = there[there.source.isin(_held_together(there))]
        beyond = there[[measure, "gain"]] - there.groupby(["cell", "seed"])[[measure, "gain"]].transform("mean")
        by_source = beyond.groupby(there.source).mean()
        found = association(by_source[measure].round(12).to_numpy(), by_source.gain.round(12).to_numpy())
        rows += [{"measure": measure.removeprefix("similarity/"), "association": found}] if found is not None else []
    table = pd.DataFrame(rows)
    return table.assign(association=corrected(list(table.association))) if len(table) else table


def _held_together(runs: pd.DataFrame) -> np.ndarray:
    """The largest set of sources of which each is held against others of it at some cell: those that may be exchanged."""
    if not len(runs):
        return np.array([], int)
    table = pd.crosstab(runs.source, runs.cell)
    runs_SP = table.to_numpy()
    _, labels_S = connected_components(runs_SP @ runs_SP.T, directed=False)
    return np.asarray(table.index[labels_S == np.bincount(labels_S).argmax()])


def _measures(by_run: pd.DataFrame) -> list[str]:
    return [name for name in by_run if name.startswith("similarity/")]


def measures_of(by_run: pd.DataFrame) -> list[str]:
    """The measures of similarity that take three values or more within a seed."""
    return [name for name in _measures(by_run) if by_run.groupby("seed")[name].nunique().max() >= 3]


def curves(design: Design) -> pd.DataFrame:
    """Rows of a figure: setting, arm, site, epoch, mean validation accuracy over seeds, n of them, and its interval. Of each
    site, and with site ALL_SITES over them all, of the seeds that have every one; no graft has no site."""
    read = {key: _accuracies(Path(folder)) for key, folder in zip(design.runs.key, design.runs.folder, strict=True)}
    rows = []
    for (setting, arm), group in _in_every_setting(design).groupby(["setting", "arm"], sort=False):
        known = group[group.key.map(lambda key: bool(read[key]))]  # of some the curves may be gone
        sites = list(known.site.unique())
        for site in [*sites, *([ALL_SITES] if sites and sites != [NONE] else [])]:
            there = known if site == ALL_SITES else known[known.site == site]
            curve_SCE = _curves(there, read)
            same = {name: there[name].iloc[0] for name in design.axes if there[name].nunique() == 1}
            for epoch, values in enumerate(curve_SCE.mean(1).T if len(curve_SCE) else (), start=1):
                found = mean_difference(values)
                half = found.half_width if math.isfinite(found.half_width) else 0.0
                rows.append(same | {"setting": setting, "arm": arm, "site": site, "epoch": epoch, "mean": found.mean,
                                    "n": found.n, "low": found.mean - half, "high": found.mean + half})  # fmt: skip
    return pd.DataFrame(rows)


def _curves(runs: pd.DataFrame, read: dict[str, list[float]]) -> np.ndarray:
    """Seeds x sites x epochs, without a gap. A run that was stopped early stays where it was."""
    longest = max(len(read[key]) for key in runs.key)
    curve_SCE = np.full((runs.seed.nunique(), runs.site.nunique(), longest), np.nan)
    for (s, c), keys in runs.groupby([pd.factorize(runs.seed)[0], pd.factorize(runs.site)[0]]).key:
        curve_SCE[s, c] = np.mean([read[key] + [read[key][-1]] * (longest - len(read[key])) for key in keys], axis=0)
    seeds_S, sites_C = complete(curve_SCE[:, :, 0])
    return np.asarray(curve_SCE[seeds_S][:, sites_C])


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


def _accuracies(folder: Path) -> list[float]:
    try:
        with open(folder / "curves.csv", newline="") as file:
            return [float(row["val/acc"]) for row in csv.DictReader(file)]
    except (FileNotFoundError, KeyError, ValueError):
        return []
