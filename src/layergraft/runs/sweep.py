"""Many runs: planned whole before the first starts, each done once, shared out among warm workers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from layergraft.donors.cache import PROVENANCE
from layergraft.errors import UserError, require
from layergraft.explain import explain
from layergraft.files import write_json
from layergraft.runs.assemble import axes, checked, outputs_of, prepare_donors
from layergraft.runs.compose import Composer
from layergraft.runs.pool import Failed, Pool
from layergraft.runs.run import execute
from layergraft.specs import Config
from layergraft.store import RECORD, is_done, read_record, run_folder

SWEEP = "sweep.json"


@dataclass(frozen=True)
class Job:
    """One run of a sweep, checked."""

    overrides: tuple[str, ...]
    config: Config
    key: str
    donor_keys: tuple[str, ...]


def plan(composer: Composer, cells: Iterable[Sequence[str]]) -> list[Job]:
    """The job of each cell (a list of overrides), checked.

    Raises UserError, with the overrides, for the first that cannot be run.
    """
    jobs = []
    for overrides in cells:
        try:
            config = composer(overrides)
            require(
                config.exec.resume is None, "exec.resume is of a single run; a sweep goes on with each run by itself"
            )
            require(config.exec.devices == 1, "exec.devices is of a single run; a sweep does a run on each device")
            run = checked(config)
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
            raise UserError(f"{line} [in the run {' '.join(overrides)}]") from error
        jobs.append(Job(tuple(overrides), config, run.key, run.donor_keys))
    return jobs


def distinct(jobs: Iterable[Job]) -> list[Job]:
    """One job for each different run; the first of equals stays."""
    different: dict[str, Job] = {}
    for job in jobs:
        different.setdefault(job.key, job)
    return list(different.values())


def write_plan(folder: Path, jobs: Sequence[Job], command: str) -> None:
    """Write what the sweep is to `folder`/sweep.json: the command and the runs' keys."""
    write_json(folder / SWEEP, {"name": folder.name, "command": command, "runs": [job.key for job in jobs]})


def environments(config: Config, num_jobs: int) -> list[dict[str, str]]:
    """One environment for each worker: one worker a core, or `exec.jobs_per_gpu` on each visible GPU."""
    settings = config.exec
    gpus: list[str] = []
    if settings.device.name != "cpu" and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    slots = gpus * settings.jobs_per_gpu if gpus else [""] * _cores()
    number = min(settings.workers or len(slots), num_jobs)
    return [{"CUDA_VISIBLE_DEVICES": slots[i % len(slots)]} if gpus else {} for i in range(number)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """Do every job that the store does not have, donors first; key -> record, of all jobs that have one.

    A run that fails is one run's failure. A progress bar tells how far it is and the time left.
    """
    console = Console(stderr=True)
    todo = [job for job in jobs if job.config.exec.rerun or not is_done(_record(job))]
    if len(todo) < len(jobs):
        console.print(f"{len(jobs) - len(todo)} of {len(jobs)} runs are in the store already")
    if not todo:
        return {job.key: _record(job) for job in jobs}
    places = environments(todo[0].config, len(todo))
    threads = todo[0].config.exec.threads or 1  # not by the number of workers: it changes the last bits of a result
    tasks = {job.key: replace(job.config, exec=replace(job.config.exec, threads=threads)) for job in todo}
    donors = {
        job.donor_keys: tasks[job.key]
        for job in todo
        if not all((outputs_of(job.config) / "donors" / key / PROVENANCE).exists() for key in job.donor_keys)
    }
    with Pool(places) as pool, _Bar(console, len(places)) as bar:
        failed_donors = {}
        for index, outcome in bar.track("donors", len(donors), pool.run(prepare_donors, list(donors.values()))):
            if isinstance(outcome, Failed):
                failed_donors[list(donors)[index]] = outcome
        ready = [job for job in todo if job.donor_keys not in failed_donors]
        for job in todo:
            if job.donor_keys in failed_donors:
                _record_failure(job, failed_donors[job.donor_keys])
        for index, outcome in bar.track("runs", len(ready), pool.run(execute, [tasks[job.key] for job in ready])):
            if isinstance(outcome, Failed):
                _record_failure(ready[index], outcome)
    records = {job.key: _record(job) for job in jobs}
    return {key: record for key, record in records.items() if record is not None}


def _record(job: Job) -> dict[str, Any] | None:
    return read_record(run_folder(outputs_of(job.config), job.key))


def _record_failure(job: Job, failed: Failed) -> None:
    """Write the record of a run that could not write its own."""
    record = {"key": job.key, "status": "failed", "axes": axes(job.config), **vars(failed)}
    write_json(run_folder(outputs_of(job.config), job.key) / RECORD, record)


class _Bar:
    """A progress bar with the time left; plain lines, ten in all, where the output is no terminal."""

    def __init__(self, console: Console, num_workers: int) -> None:
        self.console, self.num_workers = console, num_workers
        columns = (TextColumn("{task.description:>6}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("left"), TimeRemainingColumn())  # fmt: skip
        self.progress = Progress(*columns, console=console) if console.is_terminal else None

    def __enter__(self) -> _Bar:
        (self.progress or nullcontext()).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        (self.progress or nullcontext()).__exit__(*error)

    def track(self, what: str, total: int, items: Iterable[Any]) -> Iterator[Any]:
        """Yield `items`, of which there are `total`, and show how many have come."""
        if not total:
            return
        task = self.progress.add_task(what, total=total) if self.progress else None
        if not self.progress:
            self.console.print(f"{what}: {total} on {self.num_workers} workers")
        start = time.perf_counter()
        for done, item in enumerate(items, 1):
            yield item
            if self.progress:
                self.progress.update(task, completed=done)
            elif done == total or done * 10 // total > (done - 1) * 10 // total:
                elapsed = time.perf_counter() - start
                left = elapsed / done * (total - done)
                self.console.print(f"{what}: {done}/{total} in {elapsed:.0f} s, about {left:.0f} s left")
