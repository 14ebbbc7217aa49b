"""Run records on disk: `outputs/runs/<key>/`. Imports no torch.

A run's folder holds config.yaml (resolved), curves.csv (a row an epoch), model.safetensors (the trained network),
TensorBoard's events and record.json, which is written last and whole: a run is in the store when it is there. Whoever
does it holds `outputs/claims/<key>`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from layergraft.errors import UserError, unknown

RECORD = "record.json"
CLAIMS = "claims"
SWEEP = "sweep.json"
RERUN = "rerun"  # in a sweep's folder from the start of a rerun until it is concluded
STUDY, TRIALS = "study.log", "trials.csv"  # of a search
DONE = ("completed", "diverged")
STATUSES = (*DONE, "failed", "interrupted", "pruned")


def run_folder(outputs: Path, key: str) -> Path:
    """Where the run of this key is, or will be."""
    return outputs / "runs" / key


def read_sweep(folder: Path) -> dict[str, Any]:
    """What the sweep in `folder` was planned to be. Raises UserError where there is none."""
    path = folder / SWEEP
    if not path.is_file():
        if (folder / STUDY).is_file():
            raise UserError(f"{folder} is a search, not a sweep; its trials are in {folder / TRIALS}")
        near = sorted(
            {
                str(found.parent)
                for at in (folder.parent, folder / "sweeps", Path("outputs/sweeps"))
                for found in at.glob(f"*/{SWEEP}")
            }
        )
        raise unknown(f"sweep (a folder with a {SWEEP}):", str(folder), near)
    return read_json(path)


def rerun_since(folder: Path) -> float:
    """When the rerun of a sweep that is not concluded yet began, of the disk's clock; 0.0 where there is none."""
    try:
        return (folder / RERUN).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def claim_of(outputs: Path, key: str) -> Path:
    """The marker that is there while somebody does the run."""
    return outputs / CLAIMS / key


def status_of(folder: Path, newer_than: float = 0.0) -> str | None:
    """The status in a run's record; None where there is none that was written at `newer_than` (of the disk's clock) or
    later. It is among the record's first lines: a large sweep's records are not read whole for it."""
    try:
        with open(folder / RECORD, "rb") as file:
            if newer_than and os.fstat(file.fileno()).st_mtime < newer_than:
                return None
            found = re.search(rb'"status": "(\w+)"', file.read(1024))
    except FileNotFoundError:
        return None
    return found[1].decode() if found else None


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a run's folder; None where there is none yet."""
    path = folder / RECORD
    return read_json(path) if path.exists() else None


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; raises UserError where it is not whole."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def is_done(folder: Path, newer_than: float = 0.0) -> bool:
    """Whether the run need not be run again: it was completed, or diverged as it would again, and its record was written
    at `newer_than` (of the disk's clock) or later."""
    return status_of(folder, newer_than) in DONE
