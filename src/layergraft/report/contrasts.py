"""Which arms a sweep compares, and by how much they differ. Imports no torch."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from layergraft.errors import UserError, require, unknown
from layergraft.report.table import AXES, NONE, Runs, tidy
from layergraft.report.where import chosen, columns_of
from layergraft.stats import Difference, Picked, holm, mean_difference, pick

SCRATCH = "scratch"
RANDOM = "freeze, random"
CONTROLS = ("none", "random", "moment_matched", "permuted", "covariance")
METRICS = ("test/acc", "test/loss", "test/auc", "test/mae", "val/acc", "val/aulc", "train/loss", "shock/acc", "shock/loss",
           "steps_to/recover", "drift")  # fmt: skip
MAX_ARMS = 8  # of which every pair is compared where there is no scratch


@dataclass(frozen=True)
class Design:
    """A sweep's completed runs, and what in it is what."""

    runs: pd.DataFrame
    """With two columns more: `arm`, what is compared, and `setting`, what is the same in a comparison, but the site."""
    of_setting: list[str]
    """The columns that make a setting: host, data, and whatever else was swept, the donor's source included."""
    swept: list[str]

    @property
    def axes(self) -> list[str]:
        return [*AXES, *self.swept]

    @property
    def sites(self) -> list[str]:
        """Those that donors went to, in the order of the sweep."""
        return [site for site in self.runs.site.unique() if site != NONE]

    @property
    def settings(self) -> list[str]:
        """Those that donors have; a source is none of scratch's, which is in the settings of every source."""
        grafted = self.runs[self.runs.site != NONE]
        return list((grafted if len(grafted) else self.runs).setting.unique())

    def arm(self, name: str) -> pd.DataFrame:
        """The runs of an arm, or of a control: SCRATCH or RANDOM, whatever else of theirs was swept."""
        runs = self.runs
        if name == SCRATCH:
            return runs[(runs.donor == "none") & runs.strategy.isin(("scratch", "full"))]
        if name == RANDOM:
            return runs[(runs.donor == "random") & (runs.strategy == "freeze")]
        return runs[runs.arm == name]


def design(runs: Runs) -> Design:
    """An arm is a strategy with a donor, and whatever of either was swept but the donor's source; a setting is the host,
    the data, the source and whatever else was swept but the site and the seed. A host without a donor that learns in
    full is `scratch`."""
    table, swept = runs.completed, runs.swept
    of_arm = [name for name in swept if name.startswith(("strategy.", "donor.", "surgery.")) and not _of_source(name)]
    of_setting = ["host", *(["data"] if table.data.nunique() > 1 else []), *(n for n in swept if n not in of_arm)]

    def arm(strategy: str, donor: str, *more: str) -> str:
        told = "".join(
            f", {name.split('.', 1)[1]}={value}" for name, value in zip(of_arm, more, strict=True) if value != NONE
        )
        if donor == "none" and strategy in ("scratch", "full"):
            return SCRATCH + told
        return f"{strategy}, {'no donor' if donor == 'none' else donor}{told}"

    def setting(host: str, *more: str) -> str:
        pairs = zip(of_setting[1:], more, strict=True)
        told = [value if name == "data" else f"{name}={value}" for name, value in pairs if value != NONE]
        return ", ".join([host, *told])

    labelled = table.assign(
        arm=_labels(table, ["strategy", "donor", *of_arm], arm), setting=_labels(table, of_setting, setting)
    )
    return Design(labelled, of_setting, swept)


def _of_source(name: str) -> bool:
    return name.startswith("donor.data.")


def _labels(table: pd.DataFrame, columns: list[str], label: Any) -> pd.Series:
    codes, distinct = pd.factorize(pd.MultiIndex.from_frame(table[columns].astype(str)))
    return pd.Series(np.array([label(*values) for values in distinct], object)[codes], index=table.index)


def paired(design: Design, baseline: str, metric: str) -> pd.DataFrame:
    """The runs of all other arms with a column more, `gain`: `metric` less that of `baseline` with the same seed in the
    same setting, at the same site, with the same surgery; nan without such a partner. What does not apply to the baseline
    (the site of scratch, the source of a random donor) is no part of where it is."""
    base = design.arm(baseline)
    where = [*design.of_setting, "site", *(name for name in design.swept if name.startswith("surgery."))]
    keys = [name for name in where if not (base[name] == NONE).all()] + ["seed"]
    partner = base.groupby(keys, sort=False)[metric].mean().rename("partner").reset_index()
    others = design.runs[~design.runs.key.isin(base.key)].merge(partner, on=keys, how="left")
    return others.assign(gain=others[metric] - others.partner).drop(columns="partner")


def gains(design: Design, baseline: str, metric: str) -> pd.DataFrame:
    """A row a cell (setting, site, arm): its Difference to `baseline`, and the columns that are the same in it."""
    if not len(design.arm(baseline)):
        return pd.DataFrame(columns=["setting", "site", "arm", "difference"])
    rows, there = [], paired(design, baseline, metric).dropna(subset="gain")
    for (setting, site, arm), group in there.groupby(["setting", "site", "arm"], sort=False):
        by_seed = group.groupby("seed").gain.mean()
        first = group.iloc[0]
        same = {name: first[name] for name in design.axes if name != "seed"}
        rows.append(same | {"setting": setting, "site": site, "arm": arm, "difference": mean_difference(by_seed)})
    return pd.DataFrame(rows, columns=None if rows else ["setting", "site", "arm", "difference"])


@dataclass(frozen=True)
class Contrast:
    """A sum of conditions, each with its sign, averaged over the cells that all of them have, then paired by seed."""

    name: str
    terms: tuple[str, ...]
    metric: str
    num_cells: int
    seeds: tuple[int, ...]
    """That have every cell of every term."""
    unpaired: tuple[int, ...]
    """That some term has and another lacks: they do not count."""
    difference: Difference | None
    """None where no seed has all of it."""
    holm_p: float = math.nan
    """Corrected over the family that it was compared in."""


def contrast(design: Design, name: str, of: Sequence[str], metric: str = "test/acc") -> Contrast:
    """`of` are conditions with a sign: ["+strategy=freeze,site=early", "-strategy=scratch"].

    Raises UserError for a condition that no run meets and for a metric that is none.
    """
    require_sound(name, of, metric)
    parts = [design.runs[chosen(design.runs, term[1:], design.axes)] for term in of]
    for term, part in zip(of, parts, strict=True):
        require(len(part) > 0, f"{name}: no completed run has {term[1:]}")
    return _contrast(design, name, of, parts, {column for term in of for column in columns_of(term[1:])}, metric)


def between(design: Design, arm: str, baseline: str, metric: str = "test/acc") -> Contrast:
    """One arm less another."""
    own = {name for name in design.axes if name.startswith(("strategy", "donor", "surgery")) and not _of_source(name)}
    parts = [design.arm(arm), design.arm(baseline)]
    return _contrast(design, f"{arm} less {baseline}", [f"+{arm}", f"-{baseline}"], parts, own, metric)


def _contrast(
    design: Design, name: str, of: Sequence[str], parts: Sequence[pd.DataFrame], told: set[str], metric: str
) -> Contrast:
    """`parts` are the runs of each term of `of`, which the axes `told` tell apart; the others make the cells."""
    require(metric in design.runs, f"{name}: no completed run has the metric {metric}")
    free = [column for column in [*AXES[:-1], *design.swept] if column not in told]
    # A term has no place on an axis that does not apply to it: scratch is in the cells of every site.
    own = [[column for column in free if not _is_nowhere(part[column]).all()] for part in parts]
    cells = pd.DataFrame(index=[0])
    for part, columns in zip(parts, own, strict=True):
        if not columns:
            continue
        shared = [column for column in columns if column in cells]
        there = part[columns].drop_duplicates()
        cells = cells.merge(there, on=shared) if shared else cells.merge(there, how="cross")
    require(len(cells) > 0, f"{name}: its conditions share no cell of {' x '.join(free)}")
    tables = [_by_seed_and_cell(part, columns, metric) for part, columns in zip(parts, own, strict=True)]
    # A cell where no run has the metric (steps to an accuracy that none reached) leaves no seed whole.
    whole = [t.reindex(columns=list(_cell(cells, columns))).dropna() for t, columns in zip(tables, own, strict=True)]
    every = {int(seed) for part in parts for seed in part.seed}
    seeds = sorted(set.intersection(*(set(table.index) for table in whole)))
    unpaired = tuple(sorted(every - set(seeds)))
    signs = [1 if term[0] == "+" else -1 for term in of]
    deltas = sum(sign * table.loc[seeds].mean(axis=1) for sign, table in zip(signs, whole, strict=True))
    found = mean_difference(deltas.to_numpy()) if seeds else None
    return Contrast(name, tuple(of), metric, len(cells), tuple(map(int, seeds)), unpaired, found)


def _is_nowhere(column: pd.Series) -> pd.Series:
    """Where an axis does not apply: a host without a donor has no site, and the donor `none`."""
    return column.isin((NONE, "none") if column.name == "donor" else (NONE,))


def require_sound(name: str, of: Sequence[str], metric: str) -> None:
    """Raise UserError for what is no contrast."""
    if metric not in METRICS and not re.fullmatch(r"steps_to/[\d.]+", metric):
        raise unknown(f"metric of '{name}':", metric, METRICS)
    for term in of:
        require(term[:1] in ("+", "-"), f"{name}: '{term}' must begin with + or -")
    signs = [term[0] for term in of]
    require(
        len(of) > 1 and signs.count("+") == signs.count("-"),
        f"{name}: a contrast has as many conditions with + as with -, one of each or more; given: {' '.join(of) or 'none'}",
    )


def require_contrasts(records: Iterable[dict[str, Any]], specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError for a contrast that runs with these records, which have axes and configs, will not be able to have."""
    planned = tidy((record, Path()) for record in records)
    for name, spec in specs.items():
        require_sound(f"contrast {name}", spec["of"], spec["metric"])
        for term in spec["of"]:
            try:
                there = chosen(planned.table, term[1:], [*AXES, *planned.swept]).any()
            except UserError as error:
                raise UserError(f"contrast {name}: {error}") from None
            require(bool(there), f"contrast {name}: no run of this sweep has {term[1:]}")


def _cell(rows: pd.DataFrame, columns: list[str]) -> pd.Series:
    """The name of each row's cell among those of `columns`."""
    if not columns:
        return pd.Series("", index=rows.index)
    return _labels(rows, columns, lambda *levels: ", ".join(levels))


def _by_seed_and_cell(part: pd.DataFrame, columns: list[str], metric: str) -> pd.DataFrame:
    """Seeds x cells."""
    return part.assign(cell=_cell(part, columns)).pivot_table(
        index="seed", columns="cell", values=metric, aggfunc="mean"
    )


def corrected(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """With Holm's correction over all that have a difference."""
    there = [c for c in contrasts if c.difference is not None]
    found = dict(zip(map(id, there), holm([c.difference.p for c in there]), strict=True))
    return [replace(c, holm_p=found.get(id(c), math.nan)) for c in contrasts]


def named(design: Design, specs: Mapping[str, Mapping[str, Any]]) -> tuple[list[Contrast], list[str]]:
    """The contrasts that an experiment names, corrected together, and a line for each that these runs do not have.

    Without any: every arm against scratch; where there is none, every pair of arms.
    """
    found, lacking = [], []
    for name, spec in specs.items():
        try:
            found.append(contrast(design, name, spec["of"], spec["metric"]))
        except UserError as error:
            lacking.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
    if not specs:
        scratch = design.arm(SCRATCH)
        arms = list(design.runs.arm[~design.runs.key.isin(scratch.key)].unique())
        if len(scratch):
            pairs = [(arm, SCRATCH) for arm in arms]
        else:
            pairs = list(itertools.combinations(arms[:MAX_ARMS], 2))
            if len(arms) > MAX_ARMS:
                lacking.append(
                    f"the pairs of the {len(arms) - MAX_ARMS} arms after the first {MAX_ARMS}; name contrasts"
                )
        for pair in pairs:
            with suppress(UserError):  # they share no cell
                found.append(between(design, *pair))
    return corrected(found), lacking


@dataclass(frozen=True)
class Answer:
    """The arm to choose in one setting at one site, and what it gains over each control."""

    setting: str
    site: str
    axes: dict[str, str]
    arm: str
    num_arms: int
    picked: dict[str, Picked]
    """Control -> what picking gains over it."""
    holm_p: dict[str, float]
    """Corrected over all places, for each control."""
    lost: list[int]
    """Seeds that some arm or control lacks: they do not count."""


def answers(design: Design, metric: str = "test/acc", by: str = "val/acc") -> list[Answer]:
    """For each setting and site: the arm that `by` picks among those whose donor learned something (all arms with a donor
    where there are none such), and its gain in `metric`. Seeds count that have every arm and the control."""
    grafted = design.runs[design.runs.site != NONE]
    learned = grafted[~grafted.donor.isin(CONTROLS)]
    if "donor.control" in design.swept:
        learned = learned[learned["donor.control"].isin((NONE, "none"))]
    candidates = set((learned if len(learned) else grafted[~grafted.key.isin(design.arm(RANDOM).key)]).arm)
    against = {name: paired(design, name, metric) for name in (SCRATCH, RANDOM) if len(design.arm(name))}
    places: dict[tuple[str, str], dict[str, Any]] = {}
    for control, table in against.items():
        table = table[table.arm.isin(candidates)]
        for (setting, site), there in table.groupby(["setting", "site"], sort=False):
            val = there.pivot_table(index="seed", columns="arm", values=by)
            gain = there.pivot_table(index="seed", columns="arm", values="gain")
            arms = [arm for arm in val if arm in gain]  # an arm none of whose runs has a partner is told elsewhere
            val, gain = val[arms].dropna(), gain[arms].dropna()
            whole = [seed for seed in val.index if seed in gain.index]
            if not arms or not whole:
                continue
            picked = pick(val.loc[whole].to_numpy(), gain.loc[whole].to_numpy())
            place = places.setdefault((setting, site), {"picked": {}, "arms": arms, "first": there.iloc[0]})
            place["picked"][control] = picked
            place["lost"] = sorted({*map(int, there.seed)} - {*map(int, whole)})
    found = [
        Answer(setting, site, {name: str(place["first"][name]) for name in ("site", *design.of_setting)},
               place["arms"][next(iter(place["picked"].values())).column], len(place["arms"]), place["picked"], {}, place["lost"])
        for (setting, site), place in places.items()
    ]  # fmt: skip
    for control in against:
        there = [answer for answer in found if control in answer.picked]
        for answer, p in zip(there, holm([a.picked[control].gain.p for a in there]), strict=True):
            answer.holm_p[control] = p
    return found
