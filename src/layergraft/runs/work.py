"""What a worker of a sweep does with one donor or run: try it, and say what came of it."""

from __future__ import annotations

import gc
import traceback
from dataclasses import dataclass

import pytorch_lightning as pl
import torch

from layergraft.errors import require
from layergraft.files import Claimed
from layergraft.runs.assemble import obtain_donors, outputs_of
from layergraft.runs.failures import disk_full, is_full, spoils_its_process, transient
from layergraft.runs.run import execute
from layergraft.specs import Config


@dataclass(frozen=True)
class Attempt:
    """A run of a sweep, for a worker to try."""

    config: Config
    key: str
    """As it was planned."""
    wait: bool = False
    """For another process that is at it."""
    newer_than: float = 0.0
    callbacks: tuple[pl.Callback, ...] = ()


@dataclass(frozen=True)
class Outcome:
    status: str
    """One of `store.STATUSES`, or `claimed` where another process is at it."""
    error: str = ""
    traceback: str = ""
    transient: str | None = None
    """Of what kind, where the same may end well if it is tried again."""
    process_spoilt: bool = False


def attempt(task: Attempt) -> Outcome:
    """Do the run, unless another is at it. Raises UserError where it is no longer what was planned, and DiskFull."""
    try:
        record = execute(task.config, task.callbacks, wait=task.wait, newer_than=task.newer_than)
    except Claimed as error:
        return Outcome("claimed", str(error))
    require(
        record["key"] == task.key, f"what it is made of has changed since it was planned: it is {record['key']} now"
    )
    if record["status"] == "failed":
        gc.collect()  # what the traceback has held
        torch.cuda.empty_cache()
    more = record.get("transient"), record.get("process spoilt", False)
    return Outcome(record["status"], record.get("error", ""), record.get("traceback", ""), *more)


def make_donors(config: Config) -> Outcome:
    """Make the donors of a run, one for each site, where nobody has yet. Raises DiskFull."""
    try:
        obtain_donors(config)
    except Exception as error:
        if is_full(error):
            raise disk_full(outputs_of(config)) from error
        error_line = f"{type(error).__name__}: {error}"
        return Outcome("failed", error_line, traceback.format_exc(), transient(error), spoils_its_process(error))
    return Outcome("completed")
