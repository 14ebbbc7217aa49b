"""The tidy table: one row a run, whatever became of it. Imports no torch.

Records are read one after the other and only what the table has of them is kept, so that a report of ten thousand runs
fits in memory.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from layergraft.errors import UserError, require
from layergraft.report.where import chosen
from layergraft.store.files import digest, label
from layergraft.store.manifests import SWEEP, read_sweep
from layergraft.store.records import RECORD, RunRecord, read_record, run_folder

AXES = ["strategy", "site", "host", "donor", "data", "seed"]
NONE = "-"  # what an axis is where it does not apply: the site of a host without a donor
UNSET = "unset"  # a key that others with the same strategy, host or donor have
OWN = "as the run's"  # a donor's key that has the run's own value: its seed, a self donor's host
ALWAYS = ("test/acc", "val/acc", "val/aulc")  # columns that are there whatever the records have


@dataclass
class Runs:
    """The runs of a report."""

    table: pd.DataFrame
    """A row a run: key, status, error, the axes, whatever else was swept (text, NONE where it does not apply), metrics
    (a number of steps to what was never reached is inf), seconds, steps that it may train, folder."""
    swept: list[str]
    """The columns of `table` that were swept beside AXES, by their keys in the config."""
    plans: dict[str, RunRecord] = field(default_factory=dict)
    """Strategy -> the record of the first completed run with it."""
    hardware: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    contrasts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Those that the sweeps name: name -> {of, metric, runs}: the keys of the sweep's own."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know of these runs: a line each."""
    name: str = ""

    @property
    def completed(self) -> pd.DataFrame:
        done = self.table[self.table.status == "completed"].reset_index(drop=True)
        return done.astype({"seed": int})


def read(folders: Iterable[Path], where: str | None = None) -> Runs:
    """The runs of these sweeps, or of folders of runs such as outputs/runs; a run of several sweeps counts once.

    A run without a record has `status: missing`; only those that meet `where` are kept. Raises UserError for a folder that
    is neither, and where no run is left.
    """
    found: dict[str, Path] = {}
    commands, contrasts, names = [], {}, []
    for at, folder in {path.resolve(): path for path in folders}.items():  # each once
        names.append(at.name)
        if not (folder / SWEEP).is_file() and any(folder.glob(f"*/{RECORD}")):
            found |= {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{RECORD}"))}
            continue
        sweep = read_sweep(folder)
        outputs = at.parents[1]
        found |= {key: run_folder(outputs, key) for key in sweep["runs"]}
        commands.append(sweep["command"])
        asked = {name: contrast | {"runs": sweep["runs"]} for name, contrast in sweep.get("contrasts", {}).items()}
        for name, contrast in asked.items():
            others = itertools.chain(
                [name, f"{name} ({at.name})"], (f"{name} ({number})" for number in itertools.count(2))
            )
            contrasts[next(free for free in others if free not in contrasts)] = contrast
    runs = tidy((_record(key, path), path) for key, path in found.items())
    if where is not None:
        # Scratch, which has no site, is among those of every site; so is a run that is missing.
        kept = chosen(runs.table, where, [*AXES, *runs.swept, "status"], nowhere=NONE)
        require(bool(kept.any()), f"no run of {' + '.join(names)} has {where}")
        runs.table = runs.table[kept].reset_index(drop=True)
    runs.commands, runs.contrasts = commands, contrasts
    runs.name = " + ".join(names) + (f" where {where}" if where else "")
    return runs


def _record(key: str, folder: Path) -> RunRecord:
    """One that is not there, or cannot be read, is a run all the same."""
    try:
        return read_record(folder) or RunRecord(key, "missing")
    except UserError as error:
        return RunRecord(key, "damaged", error=str(error))


def target(folders: Sequence[Path], where: str | None) -> Path:
    """Where a report goes by default."""
    if len(folders) == 1 and where is None and (folders[0] / SWEEP).is_file():
        return folders[0]
    first = folders[0].resolve()
    outputs = first.parents[1] if (first / SWEEP).is_file() else first.parent
    parts = [folder.resolve().name for folder in folders]
    # A condition's signs are none of a folder's: seed<3 and seed>3 are told apart by the end of the name.
    return outputs / "reports" / label(*parts, *([where, digest(where)[:4]] if where else []))


def tidy(records: Iterable[tuple[RunRecord, Path]]) -> Runs:
    """The table of records, each with its folder."""
    rows: list[dict[str, Any]] = []
    plans: dict[str, RunRecord] = {}
    hardware: Counter[str] = Counter()
    leaves: dict[str, list[str]] = {}
    for number, (record, folder) in enumerate(records):
        axes = {name: record.axes.get(name, NONE) for name in AXES}
        rows.append({
            "key": record.key, "status": record.status, "error": record.error, **axes,
            **_metrics(record), **_similarity(record), "seconds": record.timings.get("total_seconds"),
            "steps": _steps(record), "folder": str(folder),
        })  # fmt: skip
        for name, value in _flat(_of_the_arm(record.config)):
            column = leaves.setdefault(name, [])
            column += [NONE] * (number - len(column))
            column.append(value)
        if record.status == "completed" and record.plan:
            plans.setdefault(str(axes["strategy"]), RunRecord(record.key, record.status, record.axes, plan=record.plan))
        if record.environment:
            hardware[_environment(record.environment)] += 1
    require(bool(rows), "there is no run to report")
    leaves = {name: column + [NONE] * (len(rows) - len(column)) for name, column in leaves.items()}
    table = pd.DataFrame(rows)
    table = table.reindex(columns=list(dict.fromkeys([*table, *ALWAYS])))
    numbers = [name for name in table if "/" in name or name in ("drift", "seconds", "steps")]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    table["seed"] = pd.to_numeric(table.seed, errors="coerce").astype("Int64")  # a missing run has none
    swept, notes = _swept(leaves, table)
    for place, (name, column) in enumerate(swept.items()):
        table.insert(3 + len(AXES) + place, name, column)
    told = [f"{count} runs: {text}" for text, count in hardware.most_common()]
    return Runs(table, list(swept), plans, told, notes=[*notes, *_repeated(table, [*AXES, *swept])])


def _metrics(record: RunRecord) -> dict[str, Any]:
    """Of a completed run, what was never reached is inf."""
    never = math.inf if record.status == "completed" else None
    return {
        name: never if value is None and record.units[name] == "steps" else value
        for name, value in record.metrics.items()
    }


def _steps(record: RunRecord) -> int | None:
    """As many as it may train."""
    return record.steps_per_epoch and record.steps_per_epoch * int(record.config["schedule"]["epochs"])


def _repeated(table: pd.DataFrame, axes: list[str]) -> list[str]:
    """A line where several completed runs are alike in all axes: they count as their mean."""
    twice = table[(table.status == "completed") & table[axes].astype(str).duplicated(keep=False)]
    if not len(twice):
        return []
    return [
        f"{len(twice)} runs are alike in every axis, seed included, and count as their mean, such as {' and '.join(twice.key[:2])}"
    ]


def _similarity(record: RunRecord) -> dict[str, float]:
    """Means over the resamples, and over the sites where there are several: similarity/fixed/frechet, .../site/leep."""
    found = record.similarity or {}
    means: dict[str, list[float]] = {}
    for where, parts in (("fixed", [found.get("fixed")]), ("site", (found.get("site") or {}).values())):
        for part in parts:
            for name, value in (part or {}).items():
                means.setdefault(f"similarity/{where}/{name}", []).append(value["mean"])
    return {name: sum(values) / len(values) for name, values in means.items()}


def _of_the_arm(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config less what does not act in it: without a donor there is no surgery."""
    if config.get("donor", {}).get("name") != "none":
        return config
    return {name: value for name, value in config.items() if name != "surgery"}


def text_of(value: Any) -> str:
    """A value of a config as people write it: 0.001, true, null; a list's items joined by +."""
    if isinstance(value, list):
        return "+".join(map(text_of, value)) or "[]"
    return value if isinstance(value, str) else json.dumps(value)


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if prefix == "" and name == "exec":
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, text_of(value)


def _swept(leaves: dict[str, list[str]], table: pd.DataFrame) -> tuple[dict[str, pd.Series], list[str]]:
    """The keys that were swept beside the axes, with their columns: they differ between runs that the axes do not tell apart.
    And a line for each key of the host that differs from host to host alone, so that `host` stands for it too."""
    told = {*AXES, *(f"{axis}.name" for axis in ("strategy", "host", "donor", "data"))}
    found, notes = {}, []
    for name, values in leaves.items():
        root, column = name.split(".")[0], pd.Series(values)
        if name in told:
            continue
        twin = leaves.get(name.removeprefix("donor.")) if root == "donor" else None
        if twin is not None:
            own = column.mask(column.eq(twin) & (column != NONE), OWN)
            if set(own) <= {OWN, NONE}:
                continue
            if not name.startswith("donor.data.") and own.nunique() <= column.nunique():  # a source is named as it is
                column = own
        if column.nunique() == 1:
            continue
        keys = [table[root]] if root in ("strategy", "host", "donor", "data") else []
        if name.startswith("donor.data.") and name != "donor.data.name":  # a source's keys go with its name
            keys.append(pd.Series(leaves["donor.data.name"]))
        if root == "surgery" and name != "surgery.name":
            keys.append(pd.Series(leaves["surgery.name"]))  # what goes with an operation, a gate, is no axis of its own
        there = (column != NONE) | _has(root, leaves)
        levels = column[there].mask(column == NONE, UNSET)
        keys = [key[there] for key in keys] or [pd.Series(0, index=column.index)[there]]
        if levels.groupby(keys).nunique().max() > 1:
            # A key that all that are alike lack does not apply to them; where some of them have it, the others have it unset.
            some = (levels != UNSET).groupby(keys).transform("any")
            found[name] = column.mask(column.index.isin(levels.index[some & (levels == UNSET)]), UNSET)
        elif root == "host" and levels.nunique() > 1 and UNSET not in set(levels):
            pairs = dict(zip(table.host[there], levels, strict=True))
            notes.append(
                f"{name} goes with the host: {', '.join(f'{host} has {value}' for host, value in pairs.items())}"
            )
    return found, notes


def _has(root: str, leaves: dict[str, list[str]]) -> pd.Series:
    """Which runs have any key below `root`."""
    columns = [np.array(column) != NONE for name, column in leaves.items() if name.split(".")[0] == root]
    return pd.Series(np.logical_or.reduce(columns))


def _environment(e: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in e.get("packages", {}).items())
    known = {name: e.get(name, "?") for name in ("device", "precision", "threads", "system", "python")}
    return "{device}, {precision}, {threads} thread(s) a run; {system}, Python {python}, ".format(**known) + packages


def require_completed(runs: Runs) -> None:
    """Raise UserError where no run was completed."""
    if not (runs.table.status == "completed").any():
        raise UserError(f"no run of {runs.name} was completed, so there is nothing to report")
