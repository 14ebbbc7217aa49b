"""The tidy table: one row a run, whatever became of it. Of a record no more than that is kept, so that a report of ten
thousand runs fits in memory. Imports no torch."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from layergraft.errors import UserError, listing, require
from layergraft.report.new_metrics import add_metrics
from layergraft.report.query import select
from layergraft.report.tuned_arms import Tuning, read_tuning
from layergraft.report.variation import Draws, Variation, draws, variation
from layergraft.store.files import digest, label
from layergraft.store.records import RECORD, RunRecord, read_record, run_folder, summarized
from layergraft.store.sweep_folder import SWEEP, read_sweep

AXES = ["strategy", "site", "host", "donor", "data", "seed"]
NAMED = ("strategy", "host", "donor", "data")  # parts of a config whose names are axes
NONE = "-"  # what an axis is where it does not apply: the site of a host without a donor
UNSET = "unset"  # a key that others with the same strategy, host or donor have
OWN = "as the run's"  # a donor's key that has the run's own value: its seed, a self donor's host
ALWAYS = ("test/acc", "val/acc", "val/aulc")  # columns that are there whatever the records have
UNTRAINED, WEIGHTS = (
    "untrained",
    "with trained weights",
)  # host_from of a host with initial weights, and with host.weights
# Columns beside axes and metrics: what a run's host and donors were, and what the run cost.
TOLD = ("host_from", "host_network", "head")
MEASURED = ("lr", "host_acc", "donor_acc", "trained_parameters", "peak_memory", "fit_seconds", "seconds", "steps",
            "images", "donor_images", "pretraining_images", "donor_seconds", "pretraining_seconds")  # fmt: skip


@dataclass
class Runs:
    """The runs of a report."""

    table: pd.DataFrame
    """A row a run: key, status, error, the axes, whatever else was swept (text, NONE where it does not apply), metrics
    (a number of steps to what was never reached is inf), TOLD and MEASURED (`_facts`), folder."""
    swept: list[str]
    """The columns of `table` that were swept beside AXES, by their keys in the config."""
    plans: dict[str, RunRecord] = field(default_factory=dict)
    """Strategy -> the record of the first completed run with it, one with a graft where there is one."""
    hardware: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    contrasts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Those that the sweeps name: name -> {of, metric, runs}: the keys of the sweep's own."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know of these runs: a line each."""
    units: dict[str, str] = field(default_factory=dict)
    """Metric that some run has -> its unit."""
    name: str = ""
    tunings: list[Tuning] = field(default_factory=list)
    """Those of the sweeps whose arms were tuned. The tuned keys are columns of `table`, and not among `swept`."""
    precision: list[dict[str, Any]] = field(default_factory=list)
    """Of the sweeps whose contrasts had seeds added until they were precise: `half_width`, `max_seeds`, and the `seeds` of all arms."""
    added: set[str] = field(default_factory=set)
    """Keys of the runs of such added seeds, which some arms have and others not."""
    warned: dict[str, list[str]] = field(default_factory=dict)
    """Key of a run -> the notes in its record."""
    draws: dict[str, Draws] = field(default_factory=dict)
    """Key of a completed run -> what was drawn for it."""

    @property
    def warnings(self) -> list[str]:
        """What the records of these runs say that a reader must know, each kind once."""
        return summarized(note for key in self.table.key for note in self.warned.get(key, ()))

    @property
    def variation(self) -> Variation:
        """What varied from seed to seed of the completed runs."""
        there = self.completed
        pairs = zip(there.seed.astype(int), there.key, strict=True)
        return variation((seed, self.draws[key]) for seed, key in pairs if key in self.draws)

    @property
    def completed(self) -> pd.DataFrame:
        return self.table[self.table.status == "completed"].reset_index(drop=True).astype({"seed": int})


def read(folders: Iterable[Path], where: str | None = None, metrics: Iterable[str] = ()) -> Runs:
    """The runs that meet `where` of these sweeps, or of folders of runs such as outputs/runs, each once. One without a
    record has `status: missing`. `metrics`, and those of the sweeps' contrasts, are computed for runs that were done before
    they were registered. Raises UserError for a folder that is neither, and where no run is left."""
    found: dict[str, Path] = {}
    commands, contrasts, names, tunings, precision = [], {}, [], [], {}
    for at, folder in {path.resolve(): path for path in folders}.items():  # each once
        names.append(at.name)
        if not (folder / SWEEP).is_file() and any(folder.glob(f"*/{RECORD}")):
            found |= {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{RECORD}"))}
            continue
        sweep = read_sweep(folder)
        tunings += [tuning] if (tuning := read_tuning(folder, sweep)) else []
        found |= {key: run_folder(at.parents[1], key) for key in sweep["runs"]}
        commands.append(sweep["command"])
        if "precision" in sweep:
            precision[at.name] = sweep["precision"] | {"runs": sweep["runs"]}
        for name, contrast in sweep.get("contrasts", {}).items():
            others = (f"{name} ({more})" for more in itertools.chain([at.name], itertools.count(2)))
            free = next(other for other in itertools.chain([name], others) if other not in contrasts)
            contrasts[free] = contrast | {"runs": sweep["runs"]}
    tuned = dict.fromkeys(key for tuning in tunings for key in tuning.grid)
    apart = [key for key in found if not any(key in tuning.arm_of for tuning in tunings)] if tunings else []
    why = "a report of both would average over good and bad values; report them apart"
    require(
        not apart,
        f"the arms of {' + '.join(names)} are tuned in {listing(tuned)} in some of these and not in others: {why}",
    )
    runs = tidy(((_record(key, path), path) for key, path in found.items()), tuned)
    if where is not None:
        # A run without a graft, which has no site, is among those of every site; so is a run that is missing.
        kept = select(runs.table, where, [*AXES, *runs.swept, "status"], nowhere=NONE)
        require(bool(kept.any()), f"no run of {' + '.join(names)} has {where}")
        runs.table = runs.table[kept].reset_index(drop=True)
    add_metrics(runs, [*metrics, *(contrast["metric"] for contrast in contrasts.values())])
    runs.commands, runs.contrasts, runs.tunings = commands, contrasts, tunings
    for asked in precision.values():
        own = runs.table[runs.table.key.isin(asked.pop("runs"))]
        runs.added |= set(own.key[own.seed.notna() & ~own.seed.isin(asked["seeds"])])
    runs.precision = list(precision.values())
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


def tidy(records: Iterable[tuple[RunRecord, Path]], tuned: Collection[str] = ()) -> Runs:
    """The table of records, each with its folder. The keys in `tuned` have a column each; runs are not told apart by them."""
    rows: list[dict[str, Any]] = []
    plans: dict[str, RunRecord] = {}
    hardware: Counter[str] = Counter()
    units: dict[str, str] = {}
    leaves: dict[str, list[str]] = {}
    warned: dict[str, list[str]] = {}
    drawn: dict[str, Draws] = {}
    for number, (record, folder) in enumerate(records):
        axes = {name: record.axes.get(name, NONE) for name in AXES}
        rows.append({
            "key": record.key, "status": record.status, "error": record.error, **axes,
            **_metrics(record), **_similarity(record), **_facts(record), "folder": str(folder),
        })  # fmt: skip
        for name, value in _flat(_acting(record.config)):
            column = leaves.setdefault(name, [])
            column += [NONE] * (number - len(column)) + [value]
        if record.status == "completed" and record.plan:
            first = plans.get(strategy := str(axes["strategy"]))
            if first is None or first.axes["site"] == NONE != axes["site"]:
                plans[strategy] = RunRecord(record.key, record.status, record.axes, plan=record.plan)
        units |= record.units
        if record.notes:
            warned[record.key] = record.notes
        if record.status == "completed":
            drawn[record.key] = draws(record)
        if record.environment:
            hardware[_environment(record.environment)] += 1
    require(bool(rows), "there is no run to report")
    leaves = {name: column + [NONE] * (len(rows) - len(column)) for name, column in leaves.items()}
    table = pd.DataFrame(rows)
    table = table.reindex(columns=list(dict.fromkeys([*table, *ALWAYS])))
    numbers = [name for name in table if "/" in name or name in ("drift", *MEASURED)]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    table["seed"] = pd.to_numeric(table.seed, errors="coerce").astype("Int64")  # a missing run has none
    own = {name: leaves.pop(name) for name in tuned if name in leaves}
    swept, notes = _swept(leaves, table)
    for position, (name, column) in enumerate(swept.items()):
        table.insert(3 + len(AXES) + position, name, column)
    table = table.assign(**own)
    twice = (table.status == "completed") & table[[*AXES, *swept]].astype(str).duplicated(keep=False)
    if twice.any():
        alike = f"{twice.sum()} runs are alike in every axis, seed included, and count as their mean"
        notes.append(f"{alike}, such as {' and '.join(table.key[twice][:2])}")
    told = [f"{count} runs: {text}" for text, count in hardware.most_common()]
    return Runs(table, list(swept), plans, told, notes=notes, units=units, warned=warned, draws=drawn)


def _metrics(record: RunRecord) -> dict[str, Any]:
    """Of a completed run, what was never reached is inf."""
    steps = [name for name, value in record.metrics.items() if value is None and record.units[name] == "steps"]
    return record.metrics | dict.fromkeys(steps, math.inf if record.status == "completed" else None)


def _facts(record: RunRecord) -> dict[str, Any]:
    """TOLD and MEASURED of a run. host_from: in words where the host's weights are from; host_network: which network they are,
    so that runs that share it are known; head: kept or new; lr: the learning rate; host_acc, donor_acc: test accuracy in % of the pretrained host on
    the data it was pretrained on, and of the donors (mean over sites) on theirs; peak_memory in bytes; fit_seconds: of training
    alone; steps: that it may train."""
    host, weights = record.host, record.config.get("host", {}).get("weights")
    donors = [donor["metrics"]["test/acc"] for donor in record.donors if "test/acc" in donor.get("metrics", {})]
    told = f"pretrained on {host['data']}" if "data" in host else WEIGHTS if weights else UNTRAINED
    if record.kinds.get("host") == "module":
        told = "given in Python"
    return {
        "host_from": told if record.config else None, "host_network": host.get("network", weights), "head": host.get("head"),
        "host_acc": host.get("metrics", {}).get("test/acc"), "donor_acc": np.mean(donors) if donors else None,
        "trained_parameters": record.costs.get("trained_parameters"), "peak_memory": record.costs.get("peak_memory"),
        "lr": record.config.get("optim", {}).get("lr"), "fit_seconds": record.timings.get("fit_seconds"), "seconds": record.timings.get("total_seconds"),
        **{name: record.costs.get(name) for name in ("images", "donor_images", "pretraining_images")},
        **{name: record.timings.get(name) for name in ("donor_seconds", "pretraining_seconds")},
        "steps": record.steps_per_epoch and record.steps_per_epoch * int(record.config["schedule"]["epochs"]),
    }  # fmt: skip


def _similarity(record: RunRecord) -> dict[str, float]:
    """Means over the resamples, and over the sites where there are several: similarity/fixed/frechet, .../site/leep."""
    found = record.similarity or {}
    means: dict[str, list[float]] = {}
    for where, parts in (("fixed", [found.get("fixed")]), ("site", (found.get("site") or {}).values())):
        for part in parts:
            for name, value in (part or {}).items():
                means.setdefault(f"similarity/{where}/{name}", []).append(value["mean"])
    return {name: sum(values) / len(values) for name, values in means.items()}


def _acting(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config less what does not act in what comes of it: how it is run, surgery where there is no donor, how a host that
    is not pretrained would be. `host.pretrain.data` is the name of the data set, or none."""
    idle = ("exec", "surgery") if config.get("donor", {}).get("name") == "none" else ("exec",)
    acting = {
        name: dict(value) if isinstance(value, dict) else value for name, value in config.items() if name not in idle
    }
    for owner in (acting, acting.get("donor", {})):
        host = owner.get("host")
        if isinstance(host, dict) and "pretrain" in host:
            how, data = host["pretrain"], host["pretrain"].get("data")
            of_data = {f"data.{name}": value for name, value in (data or {}).items() if name != "name"}
            named = {**how, "data": data["name"], **of_data} if data else {"data": "none"}
            owner["host"] = {**host, "pretrain": named}
    return acting


def text_of(value: Any) -> str:
    """A value of a config as people write it: 0.001, true, null; a list's items joined by +."""
    if isinstance(value, list):
        return "+".join(map(text_of, value)) or "[]"
    return value if isinstance(value, str) else json.dumps(value)


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, text_of(value)


def _swept(leaves: dict[str, list[str]], table: pd.DataFrame) -> tuple[dict[str, pd.Series], list[str]]:
    """The keys that were swept beside the axes, with their columns: they differ between runs that the axes do not tell apart.
    And a line for each key of the host that differs from host to host alone, so that `host` stands for it too."""
    told = {*AXES, *(f"{part}.name" for part in NAMED)}
    found, notes = {}, []
    for name, values in leaves.items():
        root, column = name.split(".")[0], pd.Series(values)
        twin = leaves.get(name.removeprefix("donor.")) if root == "donor" else None
        if name == "host.pretrain.seed":
            twin = leaves["seed"]
        if twin is not None:
            own = column.mask(column.eq(twin) & (column != NONE), OWN)
            if set(own) <= {OWN, NONE}:
                continue
            if (
                not name.startswith(("donor.data.", "host.pretrain.")) and own.nunique() <= column.nunique()
            ):  # a source is named as it is
                column = own
        if name in told or column.nunique() == 1:
            continue
        keys = [table[root] if root in NAMED else pd.Series(0, column.index)]
        if name.startswith("host.pretrain.") and name != "host.pretrain.data":
            keys.append(pd.Series(leaves["host.pretrain.data"]))
        for part in ("donor.data", "surgery"):  # a source's keys go with its name, a gate with its operation
            if name.startswith(f"{part}.") and name != f"{part}.name":
                keys.append(pd.Series(leaves[f"{part}.name"]))
        below_root = [np.array(values) != NONE for other, values in leaves.items() if other.split(".")[0] == root]
        there = pd.Series(np.logical_or.reduce(below_root))
        levels = column[there].mask(column == NONE, UNSET)
        if levels.groupby(keys).nunique().max() > 1:
            # A key that all that are alike lack does not apply to them; where some of them have it, the others have it unset.
            some = (levels != UNSET).groupby(keys).transform("any")
            found[name] = column.mask(column.index.isin(levels.index[some & (levels == UNSET)]), UNSET)
        elif root == "host" and levels.nunique() > 1 and UNSET not in set(levels):
            pairs = dict(zip(table.host[there], levels, strict=True)).items()
            notes.append(f"{name} goes with the host: {', '.join(f'{host} has {value}' for host, value in pairs)}")
    return found, notes


def _environment(e: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in e.get("packages", {}).items())
    known = {name: e.get(name, "?") for name in ("device", "precision", "threads", "system", "python")}
    return "{device}, {precision}, {threads} thread(s) a run; {system}, Python {python}, ".format(**known) + packages


def require_completed(runs: Runs) -> None:
    """Raise UserError where no run was completed, with what is wrong with a record that cannot be read."""
    damaged = runs.table.error[runs.table.status == "damaged"]
    why = f"; {damaged.iloc[0]}" if len(damaged) else ""
    require(len(runs.completed) > 0, f"no run of {runs.name} was completed, so there is nothing to report{why}")
