"""What a worker of a sweep does with one donor or run: try it, and say what came of it."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch

from layergraft.runs.build import get_donors, get_host
from layergraft.runs.failures import MACHINE, disk_full, is_full, spoils_its_process, transient
from layergraft.runs.plan import RunPlan
from layergraft.runs.train import execute
from layergraft.store.leases import LeaseHeld


@dataclass(frozen=True)
class Attempt:
    """A run of a sweep, for a worker to try."""

    plan: RunPlan
    wait: bool = False
    """For another process that is at it."""
    newer_than: float = 0.0
    callbacks: tuple[pl.Callback, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a run that a worker was given."""

    status: str
    """One of `store.records.STATUSES`, or `leased` where another process is at it."""
    error: str = ""
    traceback: str = ""
    transient: str | None = None
    """Of what kind, where the same may end well if it is tried again."""
    process_spoilt: bool = False
    recorded: bool = True
    """Whether the run's record says so."""


def attempt(task: Attempt) -> Outcome:
    """Do the run, unless another is at it. Raises DiskFull."""
    try:
        record = execute(task.plan.here(), task.callbacks, wait=task.wait, newer_than=task.newer_than)
    except LeaseHeld as error:
        return Outcome("leased", str(error))
    except Exception as error:  # before its training, or after it
        return _failed(error, task.plan)
    kind, spoilt = record.transient, record.process_spoilt
    if record.status == "failed":
        gc.collect()  # what the traceback has held
        try:
            torch.cuda.empty_cache()
        except RuntimeError:  # CUDA answers nothing but errors here, whichever library named the first
            kind, spoilt = kind or MACHINE, True
    return Outcome(record.status, record.error, record.traceback, kind, spoilt)


def make_host(task: Attempt) -> Outcome:
    """Pretrain the host of a run, where nobody has yet. Raises DiskFull."""
    return _made(get_host, task.plan)


def make_donors(task: Attempt) -> Outcome:
    """Make the donors of a run, one for each site, where nobody has yet. Raises DiskFull."""
    return _made(get_donors, task.plan)


def _made(make: Callable[[RunPlan], object], plan: RunPlan) -> Outcome:
    try:
        make(plan.here())
    except Exception as error:
        return _failed(error, plan)
    return Outcome("completed")


def _failed(error: Exception, plan: RunPlan) -> Outcome:
    """Of what has no record of its own. Raises DiskFull."""
    if is_full(error):
        raise disk_full(plan.outputs) from error
    line, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
    return Outcome("failed", line, trace, transient(error), spoils_its_process(error), recorded=False)
