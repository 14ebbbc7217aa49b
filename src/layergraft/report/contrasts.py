"""Which arms a sweep compares, and by how much they differ. Imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from layergraft.errors import UserError, require, unknown
from layergraft.report.query import columns_of, select
from layergraft.report.table import AXES, NONE, Runs, tidy
from layergraft.stats import Difference, complete, mean_difference, together_where_known, widened
from layergraft.store.records import RunRecord

NO_GRAFT = "no graft"
RANDOM = "random layer"
CONTROLS = ("none", "random", "moment_matched", "permuted", "covariance", "self")
MAX_ARMS = 8  # of which every pair is compared where there is no run without a graft


@dataclass(frozen=True)
class Design:
    """A sweep's completed runs, and what in it is what."""

    runs: pd.DataFrame
    """With three columns more: `arm`, what is compared; `setting`, what is the same in a comparison, but the site; and `kind`,
    the arm less its strategy, which is all of it that tells networks apart before the first step."""
    of_arm: list[str]
    """The columns that, beside strategy and donor, tell arms apart: whatever of strategy, donor or surgery was swept."""
    of_setting: list[str]
    """The columns that make a setting: host, data, and whatever else was swept, the donor's source included."""
    swept: list[str]
    units: dict[str, str]
    """Metric that some run has -> its unit."""

    @property
    def axes(self) -> list[str]:
        return [*AXES, *self.swept]

    @property
    def settings(self) -> list[str]:
        """Those that donors have; a run without a graft has no source, so it is in the settings of every source."""
        grafted = self.runs[self.runs.site != NONE]
        return list((grafted if len(grafted) else self.runs).setting.unique())

    def arm(self, name: str) -> pd.DataFrame:
        """The runs of an arm, or of a control: NO_GRAFT or RANDOM, whatever else of theirs was swept."""
        runs = self.runs
        if name == NO_GRAFT:
            return runs[runs.donor == "none"]
        if name == RANDOM:
            return runs[runs.donor == "random"]
        return runs[runs.arm == name]

    def learned(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Those of `runs` whose donor learned something: neither a control nor without a graft."""
        found = runs[(runs.site != NONE) & ~runs.donor.isin(CONTROLS)]
        return found[found["donor.control"].isin((NONE, "none"))] if "donor.control" in self.swept else found

    def like(self, control: pd.DataFrame, arm: pd.Series) -> pd.DataFrame:
        """The runs of `control` with the arm's own strategy; without a graft, else with `full`, else all. Of these, those with the
        arm's own level of whatever else tells arms apart, where it has that level among others; of surgery it must, and under
        a random layer of the strategy too. A control without such levels is that of every arm."""
        is_random = (control.donor == "random").all()
        for strategy in (arm.strategy, "full"):
            if is_random or (control.strategy == strategy).any():
                control = control[control.strategy == strategy]
                break
        must = ("surgery.", "strategy.") if is_random else ("surgery.",)
        for name in self.of_arm:
            levels, own = set(control[name]) - {NONE}, arm[name]
            if own in levels and len(levels) > 1 or levels and own != NONE and name.startswith(must):
                control = control[control[name].isin((own, NONE))]
        return control


def design(runs: Runs) -> Design:
    """The completed runs, with the columns `arm` and `setting`. An arm is a strategy with a donor, and whatever of
    either was swept but the donor's source; a setting is the host, data, source and what else was swept but site and
    seed. A host without a donor is `no graft`, with its strategy where there are several of them."""
    table, swept = runs.completed, runs.swept
    of_arm = [name for name in swept if name.startswith(("strategy.", "donor.", "surgery.")) and not of_source(name)]
    several = table.strategy[table.donor == "none"].nunique() > 1  # strategies without a graft
    of_setting = ["host", *(["data"] if table.data.nunique() > 1 else []), *(n for n in swept if n not in of_arm)]

    def told(names: list[str], values: tuple[str, ...]) -> list[str]:
        pairs = [(name.split(".", 1)[1], value) for name, value in zip(names, values, strict=True) if value != NONE]
        return [value if name == "name" else f"{name}={value}" for name, value in pairs]  # insert, gate=0.0

    def arm(strategy: str, donor: str, *more: str) -> str:
        named = [strategy, donor] if donor != "none" else [NO_GRAFT, strategy] if several else [NO_GRAFT]
        return ", ".join([*named, *told(of_arm, more)])

    def setting(host: str, *more: str) -> str:
        pairs = [(name, value) for name, value in zip(of_setting[1:], more, strict=True) if value != NONE]
        return ", ".join([host, *(value if name == "data" else f"{name}={value}" for name, value in pairs)])

    def kind(donor: str, *more: str) -> str:
        return ", ".join([donor, *told(of_kind, more)])

    of_kind = [name for name in of_arm if not name.startswith("strategy.")]
    labelled = table.assign(
        arm=_labels(table, ["strategy", "donor", *of_arm], arm), setting=_labels(table, of_setting, setting),
        kind=_labels(table, ["donor", *of_kind], kind),
    )  # fmt: skip
    return Design(labelled, of_arm, of_setting, swept, runs.units)


def of_source(name: str) -> bool:
    return name.startswith("donor.data.")


def _labels(table: pd.DataFrame, columns: list[str], label: Any) -> pd.Series:
    codes, distinct = pd.factorize(pd.MultiIndex.from_frame(table[columns].astype(str)))
    return pd.Series(np.array([label(*values) for values in distinct], object)[codes], index=table.index)


def paired(design: Design, baseline: str, metric: str) -> pd.DataFrame:
    """The runs of all other arms with a column more, `gain`: `metric` less that of `baseline` with the same seed in the
    same setting, at the same site, with the same surgery, and of a random layer under the same strategy; nan without such a partner. What does not apply to the
    baseline (the site of no graft, the source of a random donor) is no part of where it is."""
    base = design.arm(baseline)
    others = design.runs[~design.runs.key.isin(base.key)]
    gains = [pd.Series(np.nan, index=others.index)]
    for _, rows in others.groupby("arm", sort=False):
        own = design.like(base, rows.iloc[0])
        if not len(own):  # no random layer under this strategy
            continue
        keys = [*(name for name in (*design.of_setting, "site") if not (own[name] == NONE).all()), "seed"]
        kinds = own.groupby([*keys, "arm"], sort=False)[metric].mean().unstack("arm")
        partner = kinds.mean(axis=1, skipna=False).rename("partner").reset_index()
        gains.append(rows[metric] - rows[keys].merge(partner, on=keys, how="left").set_index(rows.index).partner)
    return others.assign(gain=pd.concat(gains[1:] or gains))


def gains(design: Design, baseline: str, metric: str) -> pd.DataFrame:
    """A row a cell (setting, site, arm): its `difference` to `baseline`, each for itself, and the axes that are the same in it."""
    return of_cells(design, paired(design, baseline, metric), "gain")


def whole_cells(runs: pd.DataFrame, column: str, cells: Sequence[str]) -> tuple[np.ndarray, tuple[int, ...], int]:
    """`column` as seeds x cells, which the columns `cells` tell apart, without a gap; the seeds that lack a cell, and how many
    cells are left out, as most seeds lack them (`stats.complete`)."""
    cell = runs.groupby(list(cells), sort=False).ngroup()
    table = runs.groupby(["seed", cell])[column].mean().unstack()
    seeds_S, cells_C = complete(table.to_numpy())
    value_SC = table.to_numpy()[seeds_S][:, cells_C]
    return value_SC, tuple(map(int, table.index[~seeds_S])), int((table.notna().any() & ~cells_C).sum())


def of_cells(design: Design, runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """A row a cell (setting, site, arm) of `runs`: the `difference` to 0 of the seeds' means of `column`, and the axes."""
    cells = runs.dropna(subset=column).groupby(["setting", "site", "arm"], sort=False)
    same = [*(name for name in design.axes if name != "seed"), "setting", "arm"]
    found = [mean_difference(there.groupby("seed")[column].mean()) for _, there in cells]
    return cells.head(1)[same].assign(difference=found).reset_index(drop=True)


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
    """That some term has and another lacks, or lacks in a cell: they do not count."""
    left_out: tuple[str, ...]
    """Cells that one term lacks, or that fewer than half of the seeds have."""
    never: int
    """Runs that never came to where the metric, a number of steps, counts to: they count as all their steps."""
    difference: Difference | None
    """None where no seed has all of it."""


def contrast(
    design: Design, name: str, of: Sequence[str], metric: str = "test/acc", margin: float | None = None
) -> Contrast:
    """`of` are conditions with a sign: ["+strategy=freeze,site=early", "-donor=none"]. One that does not name the donor
    is of the runs with a donor, where it has any. `margin`, in the unit of the metric: the largest difference that counts as
    equivalent. Raises UserError for a condition that no run meets, a metric that none has, and a margin that is not above 0."""
    require_sound(name, of, metric, design.units, margin)
    conditions = [term[1:] for term in of]
    parts = [_meeting(design, condition) for condition in conditions]
    for condition, part in zip(conditions, parts, strict=True):
        require(len(part) > 0, f"{name}: no completed run has {condition}")
    columns = set(itertools.chain(*map(columns_of, conditions)))
    told = {name if name in design.axes else f"{name}.name" for name in columns}  # surgery=insert
    found = _contrast(design, name, of, parts, told, metric)
    return replace(found, difference=found.difference and replace(found.difference, margin=margin))


def keys_of(design: Design, of: Iterable[str]) -> list[str]:
    """The keys of the runs that meet some condition of a contrast."""
    return list(dict.fromkeys(key for term in of for key in _meeting(design, term[1:]).key))


def _meeting(design: Design, condition: str) -> pd.DataFrame:
    runs = design.runs[select(design.runs, condition, design.axes)]
    grafted = runs[runs.donor != "none"]
    return grafted if len(grafted) and "donor" not in columns_of(condition) else runs


def between(design: Design, arm: str, baseline: str, metric: str = "test/acc") -> Contrast:
    """One arm less another."""
    own = {"strategy", "donor", *design.of_arm}
    runs, other = design.arm(arm), design.arm(baseline)
    parts = [runs, design.like(other, runs.iloc[0]) if baseline in (NO_GRAFT, RANDOM) else other]
    return _contrast(design, f"{arm} less {baseline}", [f"+{arm}", f"-{baseline}"], parts, own, metric)


def _contrast(
    design: Design, name: str, of: Sequence[str], parts: Sequence[pd.DataFrame], told: set[str], metric: str
) -> Contrast:
    """`parts` are the runs of each term of `of`, which the axes `told` tell apart; the others make the cells. In a cell a
    term is the mean of all that it has there: freeze|full of both, in every seed."""
    axes = [*AXES[:-1], *design.swept]
    free, within = [a for a in axes if a not in told], [a for a in axes if a in told]
    # What a term tells apart are its levels: freeze|full has two. A level has no place on an axis that does not apply to it:
    # a run without a graft is in the cells of every site.
    levels = [
        [(level, [c for c in free if not _is_nowhere(level[c]).all()]) for _, level in by_level]
        for by_level in (part.groupby(_cell(part, within), sort=False) for part in parts)
    ]
    require(all(levels), f"{name}: there is no pair of runs of it")
    cells = pd.DataFrame(index=[0])
    for level, columns in itertools.chain(*levels):
        shared = [column for column in columns if column in cells]
        there = level[columns].drop_duplicates()
        if columns:
            cells = cells.merge(there, on=shared or None, how="inner" if shared else "cross")
    require(len(cells) > 0, f"{name}: its conditions share no cell of {' x '.join(free)}")
    seeds = np.array(sorted({int(seed) for part in parts for seed in part.seed}))
    delta_SC = np.zeros((len(seeds), len(cells)))
    for term, there in zip(of, levels, strict=True):
        mean_SC = np.mean([_values(level, columns, cells, seeds, metric) for level, columns in there], axis=0)
        delta_SC += mean_SC if term[0] == "+" else -mean_SC
    seeds_S, cells_C = complete(delta_SC)
    found = mean_difference(delta_SC[seeds_S][:, cells_C].mean(1)) if seeds_S.any() else None
    never = sum(int(np.isinf(part[metric].astype(float)).sum()) for part in parts)
    told_apart = [c for c in free if len(set().union(*(part[c][~_is_nowhere(part[c])] for part in parts))) > 1]
    left_out: set[str] = set()
    for level, columns in itertools.chain(*levels):
        naming = [column for column in columns if column in told_apart]
        left_out |= {label or "all" for label in {*_cell(level, naming)} - {*_cell(cells[cells_C], naming)}}
    return Contrast(name, tuple(of), metric, int(cells_C.sum()), tuple(seeds[seeds_S].tolist()),
                    tuple(seeds[~seeds_S].tolist()), tuple(sorted(left_out)), never, found)  # fmt: skip


def _values(level: pd.DataFrame, columns: list[str], cells: pd.DataFrame, seeds: np.ndarray, metric: str) -> np.ndarray:
    """Seeds x cells; nan where it has no run with the metric. A number of steps to what was never reached is all of them."""
    known = level[metric].where(level[metric] != math.inf, level.get("steps"))
    mean_SC = known.groupby([level.seed, _cell(level, columns)]).mean().unstack().reindex(seeds)
    return np.asarray(mean_SC[list(_cell(cells, columns))], float)


def _is_nowhere(column: pd.Series) -> pd.Series:
    """Where an axis does not apply: a host without a donor has no site, and the donor `none`."""
    return column.isin((NONE, "none") if column.name == "donor" else (NONE,))


def require_sound(name: str, of: Sequence[str], metric: str, metrics: Collection[str], margin: Any = None) -> None:
    """Raise UserError for what is no contrast, one in a metric that is not among `metrics`, or with a margin that is not
    a number above 0."""
    if metric not in metrics:
        raise unknown(f"metric of '{name}':", metric, metrics)
    for term in of:
        require(term[:1] in ("+", "-"), f"{name}: '{term}' must begin with + or -")
    message = "a contrast has as many conditions with + as with -, one of each or more"
    plus = sum(term.startswith("+") for term in of)
    require(0 < 2 * plus == len(of), f"{name}: {message}; given: {' '.join(of) or 'none'}")
    is_number = isinstance(margin, (int, float)) and not isinstance(margin, bool)
    sound = margin is None or is_number and 0 < margin < math.inf
    require(sound, f"{name}: margin must be a number above 0, in the unit of {metric}, or null; given: {margin}")


def require_contrasts(
    records: Iterable[RunRecord], specs: Mapping[str, Mapping[str, Any]], metrics: Collection[str]
) -> None:
    """Raise UserError for a contrast that runs with these records, which have axes and configs, and with these metrics will
    not be able to have."""
    planned = tidy((record, Path()) for record in records)
    for name, spec in specs.items():
        require_sound(f"contrast {name}", spec["of"], spec["metric"], metrics, spec.get("margin"))
        for term in spec["of"]:
            try:
                there = select(planned.table, term[1:], [*AXES, *planned.swept]).any()
            except UserError as error:
                raise UserError(f"contrast {name}: {error}") from None
            require(bool(there), f"contrast {name}: no run of this sweep has {term[1:]}")


def _cell(rows: pd.DataFrame, columns: list[str]) -> pd.Series:
    """The name of each row's cell among those of `columns`."""
    return _labels(rows, columns, lambda *levels: ", ".join(levels)) if columns else pd.Series("", index=rows.index)


def corrected(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """With Holm's correction over all that have a difference."""
    found = together_where_known([c.difference for c in contrasts])
    return [replace(c, difference=difference) for c, difference in zip(contrasts, found, strict=True)]


def named(design: Design, specs: Mapping[str, Mapping[str, Any]]) -> tuple[list[Contrast], list[str]]:
    """The contrasts that an experiment names, corrected together, and a line for each that these runs do not have.
    Without any: every arm against no graft, or where there is none every pair of arms."""
    found, lacking = [], []
    for name, spec in specs.items():
        runs = design.runs[design.runs.key.isin(spec["runs"])] if "runs" in spec else design.runs
        runs = runs[runs.seed.isin(spec["seeds"])] if "seeds" in spec else runs
        # As many seeds as its interval asked for, so that it is wider than it looks.
        by_width = spec.get("by_width", False)
        try:
            one = contrast(replace(design, runs=runs), name, spec["of"], spec["metric"], spec.get("margin"))
            found.append(replace(one, difference=widened(one.difference)) if by_width and one.difference else one)
        except UserError as error:
            lacking.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
    if not specs:
        without = design.arm(NO_GRAFT)
        others = design.runs[~design.runs.key.isin(without.key)]
        arms = list((others if len(others) else design.runs).arm.unique())
        held = len(without) and len(others)  # against no graft
        if not held and len(arms) > MAX_ARMS:
            lacking.append(f"the pairs of the {len(arms) - MAX_ARMS} arms after the first {MAX_ARMS}; name contrasts")
        for pair in [(arm, NO_GRAFT) for arm in arms] if held else itertools.combinations(arms[:MAX_ARMS], 2):
            with suppress(UserError):  # they share no cell
                found.append(between(design, *pair))
    return corrected(found), lacking
