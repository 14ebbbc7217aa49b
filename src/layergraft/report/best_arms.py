"""The best way to load the layer, cell by cell, and what it gains over each control. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from layergraft.report.contrasts import NO_GRAFT, RANDOM, Design, paired
from layergraft.report.table import NONE
from layergraft.stats import Difference, complete, gain_of_picking, pick, together


@dataclass(frozen=True)
class Answer:
    """The arm to choose in one setting at one site."""

    setting: str
    site: str
    axes: dict[str, str]
    """The site and what makes the setting, for filters."""
    arm: str | None
    """The one that validates best over all seeds; None where no seed has every arm."""
    num_arms: int
    picks: dict[str, int]
    """Arm -> how many times all seeds but one pick it. The gains are of these."""
    gains: dict[str, Difference | None]
    """Control -> what picking gains over it, in points of test accuracy; None where no seed, or not every picked arm, has it.
    One family for all cells."""
    lost: dict[str, tuple[int, ...]]
    """Control -> seeds that lack it. Seeds that lack an arm: under the name `arms`."""
    left_out: tuple[str, ...]
    """Arms that fewer than half of the seeds have."""

    @property
    def agreed(self) -> bool:
        """Whether most picks are the arm that is named, so that the gains are of it."""
        return 2 * self.picks.get(self.arm or "", 0) > sum(self.picks.values())


def answers(design: Design) -> list[Answer]:
    """For each setting and site: the arm that validation picks among those whose donor learned something (all with a donor
    where there are none such), and its gain in test accuracy over the host without a donor, and over a random layer under the
    same strategy."""
    grafted = design.runs[design.runs.site != NONE]
    learned = design.learned(grafted)
    candidates = set((learned if len(learned) else grafted[~grafted.key.isin(design.arm(RANDOM).key)]).arm)
    against = {name: paired(design, name, "test/acc") for name in (NO_GRAFT, RANDOM) if len(design.arm(name))}
    found = [
        _answer(design, cell, {control: table[table.key.isin(cell.key)] for control, table in against.items()})
        for _, cell in grafted[grafted.arm.isin(candidates)].groupby(["setting", "site"], sort=False)
    ]
    corrected = iter(together(gain for answer in found for gain in answer.gains.values() if gain))
    gains = [{control: gain and next(corrected) for control, gain in answer.gains.items()} for answer in found]
    return [replace(answer, gains=of_place) for answer, of_place in zip(found, gains, strict=True)]


def _answer(design: Design, cell: pd.DataFrame, against: Mapping[str, pd.DataFrame]) -> Answer:
    def table(runs: pd.DataFrame, column: str) -> pd.DataFrame:
        return runs.groupby(["seed", "arm"], sort=False)[column].mean().unstack("arm").sort_index()

    val = table(cell, "val/acc")
    seeds_S, arms_A = complete(val.to_numpy())
    whole = val.loc[seeds_S, arms_A]
    best, picks_S = pick(whole.to_numpy()) if len(whole) else (None, np.array([], int))
    gains, lost = {}, {"arms": tuple(map(int, val.index[~seeds_S]))}
    for control, runs in against.items():
        gain = table(runs, "gain").reindex(index=whole.index, columns=whole.columns)
        # Where a picked arm has no such control at all, the seeds that are left would be those that pick another.
        whole_control = bool(gain.iloc[:, np.unique(picks_S)].notna().any().all())
        gains[control] = gain_of_picking(gain.to_numpy(), picks_S) if len(whole) and whole_control else None
        lost[control] = tuple(map(int, whole.index[np.isnan(gain.to_numpy()[np.arange(len(whole)), picks_S])]))
    first = cell.iloc[0]
    return Answer(
        first.setting, first.site, {name: str(first[name]) for name in ("site", *design.of_setting)},
        None if best is None else whole.columns[best], whole.shape[1],
        dict(Counter(whole.columns[arm] for arm in picks_S).most_common()), gains, lost, tuple(val.columns[~arms_A]) if arms_A.any() else (),
    )  # fmt: skip
