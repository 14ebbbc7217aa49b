"""Run records on disk: `outputs/runs/<key>/`. Imports no torch.

A run's folder holds config.yaml (resolved), curves.csv (a row an epoch), model.safetensors (the trained network),
TensorBoard's events and record.json, which is written last and whole: a run is in the store when it is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from layergraft.errors import UserError

RECORD = "record.json"
STATUSES = ("completed", "failed", "diverged", "interrupted")


def run_folder(outputs: Path, key: str) -> Path:
    return outputs / "runs" / key


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a run's folder; None where there is none yet."""
    path = folder / RECORD
    return read_json(path) if path.exists() else None


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; raises UserError where it is not whole."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def is_done(record: dict[str, Any] | None) -> bool:
    """Whether the run need not be run again: it was completed, or diverged as it would again."""
    return record is not None and record["status"] in ("completed", "diverged")
