"""Which arms a sweep compares, and by how much they differ. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from layergraft.report.table import AXES
from layergraft.stats import Difference, difference, holm

SCRATCH = "scratch"


def with_arms(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs` with two columns more: `arm`, what is compared, and `setting`, what is the same in a comparison.

    An arm is a strategy with a donor, and whatever of either was swept; the setting is the host, the data and
    whatever else was swept but the site and the seed. A host without a donor that learns in full is `scratch`.
    """
    swept = list(runs.columns[len(AXES) + 2 : runs.columns.get_loc("test/acc")])  # after key, status and the axes
    of_arm = [name for name in swept if name.startswith(("strategy.", "donor.", "surgery."))]
    of_setting = [name for name in swept if name not in of_arm]

    def label(row: pd.Series, names: Sequence[str]) -> str:
        return "".join(f", {name}={row[name]}" for name in names if pd.notna(row[name]))

    def arm(row: pd.Series) -> str:
        if row.donor == "none" and row.strategy in ("scratch", "full"):
            return SCRATCH + label(row, of_arm)
        donor = "no donor" if row.donor == "none" else row.donor
        return f"{row.strategy}, {donor}{label(row, of_arm)}"

    data = len(runs.data.unique()) > 1
    setting = [row.host + (f", {row.data}" if data else "") + label(row, of_setting) for _, row in runs.iterrows()]
    return runs.assign(arm=[arm(row) for _, row in runs.iterrows()], setting=setting)


def cell(runs: pd.DataFrame, metric: str, arm: str, setting: str, site: str) -> dict[int, float]:
    """`metric` by seed in one cell; scratch, which has no site, is in every site's."""
    there = runs[(runs.arm == arm) & (runs.setting == setting) & runs.site.isin([site, "-"])]
    return there.groupby("seed")[metric].mean().to_dict()


@dataclass(frozen=True)
class Contrast:
    """Two arms, each averaged over the same cells (settings x sites) within a seed, then paired by seed."""

    arm: str
    baseline: str
    num_cells: int
    difference: Difference
    holm_p: float
    """Corrected over the family that it was compared in."""


def compare(runs: pd.DataFrame, metric: str, sites: Sequence[str]) -> list[Contrast]:
    """Every pair of arms that share a cell at `sites`, one family for Holm's correction.

    A seed counts where it has all the cells that the pair shares.
    """
    arms = sorted(runs.arm.unique(), key=lambda name: (name == SCRATCH, name))
    cells = [(setting, site) for setting in runs.setting.unique() for site in sites]
    found = []
    for arm, baseline in itertools.combinations(arms, 2):
        pairs = [[cell(runs, metric, name, *where) for name in (arm, baseline)] for where in cells]
        pairs = [pair for pair in pairs if pair[0] and pair[1]]
        if not pairs:
            continue
        result = difference(*[_mean_by_seed([pair[side] for pair in pairs]) for side in (0, 1)])
        if result is not None:
            found.append((arm, baseline, len(pairs), result))
    corrected = holm([result.p for *_, result in found])
    return [Contrast(*parts, p) for parts, p in zip(found, corrected, strict=True)]


def _mean_by_seed(cells: Sequence[dict[int, float]]) -> dict[int, float]:
    seeds = set.intersection(*(set(values) for values in cells))
    return {seed: sum(values[seed] for values in cells) / len(cells) for seed in seeds}


def sites_of(runs: pd.DataFrame) -> list[str]:
    """The sites that donors went to, in the order of the sweep; scratch alone has none."""
    return [site for site in runs.site.unique() if site != "-"]


def against(runs: pd.DataFrame, metric: str, baseline: str) -> dict[str, pd.DataFrame]:
    """Setting -> table of Difference (or None), a row an arm and a column a site, each cell less `baseline` in it."""
    sites = sites_of(runs)
    tables = {}
    for setting in runs.setting.unique():
        arms = [a for a in runs[runs.setting == setting].arm.unique() if a not in (baseline, SCRATCH)]
        rows = [[difference(cell(runs, metric, arm, setting, site), cell(runs, metric, baseline, setting, site))
                 for site in sites] for arm in arms]  # fmt: skip
        tables[setting] = pd.DataFrame(rows, index=arms, columns=sites, dtype=object)
    return tables
