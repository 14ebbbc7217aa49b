"""Records of runs: `outputs/runs/<key>/`. Only this module writes and reads them.

A run's folder holds config.yaml (resolved), curves.csv (a row an epoch), model.safetensors (the trained network),
predictions.parquet (of the test images: `store.predictions`), TensorBoard's events and record.json, which is written last and whole: a run is in the store when it is there. Whoever
does it holds `outputs/leases/<key>`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from layergraft.errors import UserError, require
from layergraft.store.files import write_json

RECORD_VERSION = 11  # raise it when a field is added, goes, or means something else
RECORD = "record.json"
LEASES = "leases"
DONE = ("completed", "diverged")
STATUSES = (*DONE, "failed", "interrupted", "pruned")


@dataclass(frozen=True)
class GraftRecord:
    """What surgery did at one site."""

    site: str
    """The module path in the host."""
    donor: str
    """The donor's form in words."""
    did: list[str]
    donor_paths: dict[str, str]
    """Module of the donor -> its path in the run's network: the whole of it ("") but for a stem's parts, which go apart."""
    adapter_paths: list[str]
    replaced: list[str]
    """Module paths of the host where something else stands in the run's network."""
    calibration_paths: list[str] = field(default_factory=list)
    """Modules that calibration added."""


@dataclass
class RunRecord:
    """A run and what came of it. What a run that was not completed did not get to is empty, or None."""

    key: str
    status: str
    """One of STATUSES; of a run that is not in the store, whatever its reader calls it."""
    axes: dict[str, str | int] = field(default_factory=dict)
    """The names by which people tell runs apart."""
    config: dict[str, Any] = field(default_factory=dict)
    """In its canonical form (`config.registry`)."""
    kinds: dict[str, str] = field(default_factory=dict)
    """host, donor, data, surgery -> the name by which its class is registered."""
    started: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    """Device, precision, threads, versions."""
    resumed: bool = False
    notes: list[str] = field(default_factory=list)
    """What a reader of its figures must know, such as test images that its donor has seen: a line each."""
    error: str = ""
    traceback: str = ""
    transient: str | None = None
    """Of what kind, where the same may end well if it is tried again."""
    process_spoilt: bool = False
    """Whether the process that it ran in is of no further use."""
    steps_per_epoch: int | None = None
    host: dict[str, Any] = field(default_factory=dict)
    """`head`: kept or new. Of a host with trained weights also where they are from: `weights` as the config has it, or
    `network` (its key), `data`, `seed`, `num_train` and `metrics` of one that was pretrained here."""
    costs: dict[str, int] = field(default_factory=dict)
    """`trained_parameters` (in any phase); `images` that training went through, each as often as it did, and those of training
    its host (`pretraining_images`) and its donors (`donor_images`), 0 where none was trained here; and `peak_memory` in bytes while
    it trained, where that can be measured."""
    donors: list[dict[str, Any]] = field(default_factory=list)
    """The provenance of each site's donor."""
    grafts: list[GraftRecord] = field(default_factory=list)
    """A graft for each donor."""
    data: dict[str, Any] = field(default_factory=dict)
    """What is known of the splits (`data.manifest`)."""
    normalization: dict[str, list[float]] = field(default_factory=dict)
    """mean, std -> a number for each channel, of images from 0 to 1."""
    similarity: dict[str, Any] | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    """What learned when and how fast, as it came (`strategies.timeline`)."""
    probes: list[dict[str, Any]] = field(default_factory=list)
    frozen_prefixes: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds: `fit_seconds` of training, `total_seconds` of all; `pretraining_seconds` and `donor_seconds`, as it was when these were
    trained, which may have been for another run."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """None: a number of steps to what was never reached."""
    units: dict[str, str] = field(default_factory=dict)
    """Metric -> its unit."""
    confusion: list[list[int]] | None = None
    """How many test images of each class (rows) are told to be of which class (columns); None of a multi-label set."""
    version: int = RECORD_VERSION


def summarized(notes: Iterable[str]) -> list[str]:
    """The notes of many runs, each kind once: those that differ in numbers alone are one kind, told by the first of them."""
    kinds: dict[str, list[str]] = {}
    for note in notes:
        kinds.setdefault(re.sub(r"\d+(\.\d+)?", "0", note), []).append(note)
    return [
        first if not others else f"in {1 + len(others)} runs{'' if {*others} == {first} else ', such as'}: {first}"
        for first, *others in kinds.values()
    ]


def run_folder(outputs: Path, key: str) -> Path:
    """Where the run of this key is, or will be."""
    return outputs / "runs" / key


def lease_path(outputs: Path, key: str) -> Path:
    """The marker that is there while somebody does the run."""
    return outputs / LEASES / key


def write_record(folder: Path, record: RunRecord) -> None:
    plain = dataclasses.asdict(record)
    first = {name: plain[name] for name in ("version", "key", "status")}
    write_json(folder / RECORD, first | {name: value for name, value in plain.items() if value is not None})


def read_record(folder: Path) -> RunRecord | None:
    """The record in a run's folder, or None. Raises UserError for one that is not whole, or of another version."""
    path = folder / RECORD
    if not path.exists():
        return None
    plain = read_json(path)
    written = plain.get("version")
    if written != RECORD_VERSION:
        by = plain.get("environment", {}).get("packages", {}).get("layergraft", "another version")
        is_not = f"of version {written or 'unknown'}, and this layergraft reads version {RECORD_VERSION}"
        instead = f"read it with the layergraft that wrote it ({by}), or do the run again with exec.rerun=true"
        raise UserError(f"{path} is a record {is_not}: {instead}")
    try:
        grafts = [GraftRecord(**graft) for graft in plain.pop("grafts", [])]
        return RunRecord(grafts=grafts, **plain)
    except TypeError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; raises UserError where it is not whole."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    require(isinstance(content, dict), f"{path} is damaged: it holds a {type(content).__name__}")
    return content


def status_of(folder: Path, newer_than: float = 0.0) -> str | None:
    """The status in a run's record; None where there is none that was written at `newer_than` (of the disk's clock) or
    later. Raises UserError as `read_record` does."""
    try:
        stamp = os.stat(folder / RECORD)
    except FileNotFoundError:
        return None
    return None if stamp.st_mtime < newer_than else _status(folder, stamp.st_mtime_ns, stamp.st_ino)


@lru_cache(maxsize=100_000)
def _status(folder: Path, modified: int, inode: int) -> str | None:
    return record.status if (record := read_record(folder)) else None


def is_done(folder: Path, newer_than: float = 0.0) -> bool:
    """Whether the run need not be run again: it was completed, or diverged as it would again, and its record was written
    at `newer_than` (of the disk's clock) or later."""
    return status_of(folder, newer_than) in DONE
