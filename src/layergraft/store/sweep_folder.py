"""What a sweep was planned to be: `outputs/sweeps/<name>/sweep.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layergraft.errors import UserError, unknown
from layergraft.store.files import modified
from layergraft.store.records import read_json

SWEEP = "sweep.json"
RERUN = "rerun"  # in a sweep's folder from the start of a rerun until it is concluded
TUNED = "tuning.json"  # how each arm of the sweep was tuned
STUDY, TRIALS = "study.log", "trials.csv"  # of a search


def read_sweep(folder: Path) -> dict[str, Any]:
    """What the sweep in `folder` was planned to be. Raises UserError where there is none."""
    path = folder / SWEEP
    if not path.is_file():
        if (folder / STUDY).is_file():
            raise UserError(f"{folder} is a search, not a sweep; its trials are in {folder / TRIALS}")
        around = (folder.parent, folder / "sweeps", Path("outputs/sweeps"))
        near = sorted({str(found.parent) for at in around for found in at.glob(f"*/{SWEEP}")})
        raise unknown(f"sweep (a folder with a {SWEEP}):", str(folder), near)
    return read_json(path)


def rerun_since(folder: Path) -> float:
    """Return when the rerun of a sweep that is not concluded yet began, of the disk's clock; 0.0 where there is none."""
    return modified(folder / RERUN)
