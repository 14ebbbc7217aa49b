"""All that a report says, computed once, for the page and for the Markdown. Imports no torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components
from scipy.stats import trim_mean

from layergraft.errors import UserError, counted, listing
from layergraft.report import contrasts, loading
from layergraft.report.best_arms import Answer, answers
from layergraft.report.contrasts import CONTROLS, NO_GRAFT, RANDOM, Contrast, Design, of_source
from layergraft.report.loading import Loading
from layergraft.report.table import NONE, Runs
from layergraft.report.tuned_arms import notes as tuning_notes
from layergraft.report.tuned_arms import tuned_arms
from layergraft.stats import Shares, association, comparable, factorial, mean_difference, shares, together
from layergraft.stats.association import corrected

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
    """What gains are over: no graft, or else a random layer under the same strategy, or else none."""
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
    loadings: list[Loading]
    """What loading a layer that learned something did, for each origin of the hosts' weights."""
    shocks: pd.DataFrame
    """A row a setting, site and kind of donor: the `difference` of validation accuracy at step 0, grafted less intact."""
    costs: pd.DataFrame
    """A row an arm (`loading.costs`)."""
    calibration: pd.DataFrame
    """A row a site and calibration (`loading.calibration`)."""
    similar: pd.DataFrame
    """A row a measure of similarity: its `association` with the gain over sources."""
    tuned: pd.DataFrame
    """A row a setting, site and arm that was tuned (`report.tuned_arms`)."""
    by_run: pd.DataFrame
    """The grafted runs with their `gain` in test/acc."""
    notes: list[str]
    """What a reader must know of the comparisons: a line each."""


def find(runs: Runs) -> Findings:
    """Contrasts, gains, shares of variance and the rest, of these runs."""
    whole = contrasts.design(runs)
    design = replace(whole, runs=whole.runs[~whole.runs.key.isin(runs.added)].reset_index(drop=True))
    baseline = next((name for name in (NO_GRAFT, RANDOM) if 0 < len(design.arm(name)) < len(design.runs)), None)
    compared, lacking = contrasts.named(whole, runs.contrasts)
    gained = ("test/acc", "val/aulc")
    gains = {metric: contrasts.gains(design, baseline, metric) for metric in gained} if baseline else {}
    by_run = contrasts.paired(design, baseline, "test/acc") if baseline else design.runs.assign(gain=np.nan)
    by_run = by_run[by_run.site != NONE]
    varied, of = _shares(runs, design)
    ladder, steps = _ladder(design, gains.get("test/acc"))
    answered = answers(design)
    across = _across(by_run) if baseline else pd.DataFrame()
    tuned = tuned_arms(design, runs.tunings)
    return Findings(
        runs, design, compared, lacking, answered, baseline, gains, across, varied, of, ladder, steps,
        loading.loadings(design), loading.shocks(design), loading.costs(design, across), loading.calibration(design),
        _similar(design, by_run), tuned, by_run,
        [*tuning_notes(design, runs.tunings, tuned), *_precision(runs, compared), *runs.notes, *_notes(design, by_run, baseline, answered)],
    )  # fmt: skip


def _precision(runs: Runs, compared: list[Contrast]) -> list[str]:
    """How seeds were added to contrasts, and which are not as precise as was asked."""
    notes = []
    for asked in runs.precision:
        width, limit = asked["half_width"], asked["max_seeds"]
        seeds = f"seeds {asked['seeds'][0]} to {asked['seeds'][-1]}"
        added = f"seeds were added to each contrast in points until its interval was within ± {width:g} points, up to {limit} of them"
        notes.append(
            f"{added}; its interval is widened for that. All else in this report is of {seeds}, which every arm has"
        )
        wide = [
            c.name
            for c in compared
            if c.difference is not None and c.difference.n >= limit and c.difference.half_width > width
        ]
        if wide:
            notes.append(f"not within ± {width:g} at {limit} seeds: {listing(wide)}")
    return notes


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
            own = "its own (that of its strategy, or else of full), and where it has none, with their mean"
            notes.append(
                f"{kinds}: an arm is compared with {own if control == NO_GRAFT else 'that of its own strategy'}"
            )
        if answered and len(variants) and not any(answer.gains.get(control) for answer in answered):
            shared = "seeds, site and surgery" if control == NO_GRAFT else "strategy, seeds, site and surgery"
            where = f"no cell has a run of '{control}' with the {shared} of the best arm"
            notes.append(f"{where}, so nothing is compared with it")
    return notes


def _across(by_run: pd.DataFrame) -> pd.DataFrame:
    """Agarwal et al. 2021: the interquartile mean over cells, and the probability of improvement; here paired, one figure a
    seed, so that the interval is of the seeds. The arms are one family for each figure."""
    rows = []
    for arm, there in by_run.groupby("arm", sort=False):
        gain_SC, lost, left_out = contrasts.whole_cells(there, "gain", ["setting", "site"])
        row = {"arm": arm, "cells": gain_SC.shape[1], "n": len(gain_SC), "left_out": left_out, "lost": lost}
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


def _similar(design: Design, by_run: pd.DataFrame) -> pd.DataFrame:
    """Measure and gain, each less its mean over the sources of the same arm, site, host and seed, so that nothing but the
    source is compared; then a source's means, and their rank correlation over the arrangements that the sources' swept keys
    allow. The measures are one family."""
    source = [name for name in design.swept if of_source(name)]
    alike = ["arm", "site", *(name for name in design.of_setting if name not in source)]
    rows = []
    for measure in _measures(by_run) if source else ():
        there = by_run.dropna(subset=[measure, "gain"])
        for number, columns in {"source": source, "cell": alike}.items():
            there[number] = there.groupby(columns, sort=False).ngroup()
        there = _comparable(there, source)
        beyond = there[[measure, "gain"]] - there.groupby(["cell", "seed"])[[measure, "gain"]].transform("mean")
        by_source = beyond.groupby(there.source).mean()
        measure_N, gain_N = (by_source[name].round(12).to_numpy() for name in (measure, "gain"))
        found = association(measure_N, gain_N, _levels(there, source).loc[by_source.index].to_dict("list"))
        rows += [{"measure": measure.removeprefix("similarity/"), "association": found}] if found is not None else []
    table = pd.DataFrame(rows)
    return table.assign(association=corrected(list(table.association))) if len(table) else table


def _comparable(runs: pd.DataFrame, factors: list[str]) -> pd.DataFrame:
    """Those of sources that are held against each other and that have the most arrangements (`stats.comparable`): again, as one that is
    left out may have been what another was held against."""
    kept = runs[runs.groupby(["cell", "seed"]).source.transform("nunique") > 1]
    kept = kept[kept.source.isin(_held_together(kept))]
    levels = _levels(kept, factors)
    kept = kept[kept.source.isin(levels.index[comparable(levels.to_dict("list"))])]
    return kept if len(kept) == len(runs) else _comparable(kept, factors)


def _levels(runs: pd.DataFrame, factors: list[str]) -> pd.DataFrame:
    """Source -> its level of each factor, nan where the factor does not apply."""
    return runs.drop_duplicates("source").set_index("source")[factors].where(lambda levels: levels != NONE)


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
