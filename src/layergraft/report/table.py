"""The tidy table of a sweep: one row a run. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from layergraft.errors import UserError
from layergraft.store import read_record, read_sweep, run_folder

AXES = ["strategy", "site", "host", "donor", "data", "seed"]


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a sweep's runs in the order of its plan; a run without one has `status: missing`."""
    outputs = folder.resolve().parents[1]
    keys = read_sweep(folder)["runs"]
    return [read_record(run_folder(outputs, key)) or {"key": key, "status": "missing"} for key in keys]


def tidy(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a completed run: key, status, axes, whatever else in the configs differs, metrics.

    Raises UserError where no run was completed.
    """
    done = [record for record in records if record["status"] == "completed"]
    if not done:
        raise UserError("no run of this sweep was completed, so there is nothing to report")
    flat = pd.DataFrame([_flat(_of_the_arm(record["config"])) for record in done])
    rows = pd.DataFrame([{"key": r["key"], "status": r["status"], **r["axes"]} for r in done])
    for name in _extra_axes(flat, rows):
        rows[name] = flat[name]
    return pd.concat([rows, pd.DataFrame([{**r["metrics"], **_similarity(r)} for r in done])], axis=1)


def _similarity(record: dict[str, Any]) -> dict[str, float]:
    """Means over the resamples, and over the sites where there are several: similarity/fixed/frechet, .../site/leep."""
    found = record.get("similarity") or {}
    means: dict[str, list[float]] = {}
    for where, parts in (("fixed", [found.get("fixed", {})]), ("site", found.get("site", {}).values())):
        for part in parts:
            for name, value in part.items():
                means.setdefault(f"similarity/{where}/{name}", []).append(value["mean"])
    return {name: sum(values) / len(values) for name, values in means.items()}


def _of_the_arm(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config less what does not act in it: without a donor there is no surgery."""
    if config["donor"]["name"] != "none":
        return config
    return {name: value for name, value in config.items() if name != "surgery"}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = json.dumps(value) if isinstance(value, (list, dict)) else value
    return leaves


def _extra_axes(flat: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """The keys that were swept beside the axes: they differ between runs that the axes do not tell apart."""
    extra = []
    told = {*AXES, *(f"{axis}.name" for axis in ("strategy", "host", "donor", "data"))}
    for name in flat:
        twin = name.removeprefix("donor.")  # what a donor takes over from the run (its seed, a self donor's host)
        if twin != name and twin in flat and flat[name].dropna().eq(flat[twin][flat[name].notna()]).all():
            told.add(name)
    for name in flat:
        root = name.split(".")[0]
        if root == "exec" or name in told:
            continue
        named = [axis for axis in ("strategy", "host", "donor", "data") if axis == root]
        filled = flat[name].astype("string").fillna("null")
        if root == "surgery":
            filled = filled[rows.donor != "none"]
        within = [rows[axis] for axis in named] or [[0] * len(filled)]
        if name.startswith("donor.data.") and name != "donor.data.name":  # a source's keys go with its name
            within.append(flat["donor.data.name"].fillna("null"))
        if root == "surgery" and name != "surgery.name":
            within = [
                flat["surgery.name"][filled.index]
            ]  # what goes with an operation's name, a gate, is no axis of its own
        if filled.groupby(within).nunique().max() > 1:
            extra.append(name)
    return extra
