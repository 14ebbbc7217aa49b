"""Many runs: planned whole before the first starts, each done once, shared out among warm workers."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from layergraft.claims import Claimed, claim
from layergraft.donors.cache import PROVENANCE, forget_donor
from layergraft.errors import counted, require
from layergraft.explain import of_the_run
from layergraft.files import write_json
from layergraft.runs.assemble import axes, checked, outputs_of, precision_note
from layergraft.runs.failures import MACHINE, MEMORY, DiskFull, disk_full, is_full
from layergraft.runs.pool import WORKER_DIED, Crew, Failed, Pool, Task
from layergraft.runs.work import Attempt, Outcome, attempt, make_donors
from layergraft.specs import Config, ExecSpec
from layergraft.store import RECORD, claim_of, is_done, run_folder


@dataclass(frozen=True)
class Job:
    """One run of a sweep, checked."""

    overrides: tuple[str, ...]
    config: Config
    key: str
    donor_keys: tuple[str, ...]


def plan(cells: Iterable[tuple[Sequence[str], Config]]) -> list[Job]:
    """The job of each cell (overrides, and the config that comes of them), checked.

    Raises UserError, with the overrides, for the first that cannot be run.
    """
    jobs = []
    for overrides, config in cells:
        with of_the_run(overrides):
            require(
                config.exec.resume is None, "exec.resume is of a single run; a sweep goes on with each run by itself"
            )
            require(config.exec.devices == 1, "exec.devices is of a single run; a sweep does a run on each device")
            run = checked(config)
        jobs.append(Job(tuple(overrides), config, run.key, run.donor_keys))
    return jobs


def distinct(jobs: Iterable[Job]) -> list[Job]:
    """One job for each different run; the first of equals stays."""
    different: dict[str, Job] = {}
    for job in jobs:
        different.setdefault(job.key, job)
    return list(different.values())


def for_a_worker(config: Config, beside: int = 1) -> Config:
    """The config of one run among others, so many where it is: on one thread, since not the number of workers may change
    its last bits; what is to be done again is told by its age."""
    settings = replace(config.exec, threads=config.exec.threads or 1, workers=beside, rerun=False)
    return replace(config, exec=settings)


def places(settings: ExecSpec, num_jobs: int) -> list[str]:
    """The place of each worker: a core of this machine, or a GPU as CUDA_VISIBLE_DEVICES names it, `exec.jobs_per_gpu`
    times each."""
    gpus: list[str] = []
    if settings.device.name != "cpu" and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    slots = gpus * settings.jobs_per_gpu if gpus else [""] * _cores()
    return [slots[i % len(slots)] for i in range(min(settings.workers or len(slots), num_jobs))]


def _cores() -> int:
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, int(os.environ.get("SLURM_CPUS_PER_TASK", there)))  # not every cluster binds a job to its cores


def run(jobs: Sequence[Job], *, newer_than: float = 0.0, crew: Crew | None = None, where: Sequence[str] = ()) -> None:
    """Do every job that the store does not have, donors first.

    What was written before `newer_than` (of the disk's clock) does not count. A run that fails is one run's failure;
    what may pass is tried again. Workers are this machine's, or come from `crew`, one for each place of `where`. Raises
    DiskFull.
    """
    todo = [job for job in jobs if not is_done(folder_of(job), newer_than)]
    console = Console(stderr=True)
    if len(todo) < len(jobs):
        console.print(f"{len(jobs) - len(todo)} of {counted(len(jobs), 'run')} in the store already")
    if todo:
        for note in {precision_note(job.config) for job in todo} - {None}:
            console.print(note, markup=False)
        there = list(where)[: len(todo)] or places(todo[0].config.exec, len(todo))
        _Sweep(todo, newer_than).work(console, there, crew)


def folder_of(job: Job) -> Path:
    return run_folder(outputs_of(job.config), job.key)


class _Sweep:
    """The runs that are to be done, and the donors that they wait for."""

    def __init__(self, todo: Sequence[Job], newer_than: float) -> None:
        settings = todo[0].config.exec
        self.retries, self.newer_than = settings.retries, newer_than
        self.todo = todo
        self.tries: dict[Any, int] = defaultdict(int)
        self.held: dict[tuple[str, ...], list[Job]] = defaultdict(list)  # keys of donors -> the runs that wait for them
        if newer_than:
            for outputs, key in {(outputs_of(job.config), key) for job in todo for key in job.donor_keys}:
                forget_donor(outputs, key, newer_than)
        for job in todo:
            donors = outputs_of(job.config) / "donors"
            if not all((donors / key / PROVENANCE).exists() for key in job.donor_keys):
                self.held[job.donor_keys].append(job)

    def work(self, console: Console, where: Sequence[str], crew: Crew | None) -> None:
        self.beside = max(Counter(where).values())
        with Pool(where, crew) as pool, _Bar(console, len(where), len(self.held), len(self.todo)) as bar:
            for keys, jobs in self.held.items():
                pool.add(Task(make_donors, for_a_worker(jobs[0].config), keys))
            for job in self.todo:
                if job.donor_keys not in self.held:
                    pool.add(self._task(job))
            for task, given in pool.outcomes():
                outcome = outcome_of(given, self.todo[0].config)
                again = self._again(task, outcome, pool)
                if again is not None:
                    pool.add(again)
                elif isinstance(task.about, Job):
                    bar.advance("runs")
                    if not outcome.recorded:
                        record_failure(task.about, outcome, self.newer_than)
                else:
                    bar.advance("donors")
                    for job in self.held.pop(task.about):
                        if outcome.status == "completed":
                            pool.add(self._task(job))
                        else:
                            bar.advance("runs")
                            record_failure(job, outcome, self.newer_than)

    def _task(self, job: Job, wait: bool = False, crowd: int | None = None) -> Task:
        return Task(attempt, Attempt(for_a_worker(job.config, self.beside), job.key, wait, self.newer_than), job, crowd)

    def _again(self, task: Task, outcome: Outcome, pool: Pool) -> Task | None:
        """The task for another try; None where it is settled.

        What another process is at is waited for, after all else. What has run out of memory is tried with half as many
        beside it on its GPU until it is alone there; what else may pass, `exec.retries` times, the last time alone.
        """
        about = task.about
        name = about.key if isinstance(about, Job) else about
        if outcome.status == "claimed":
            return self._task(about, wait=True)
        if outcome.transient is None:
            return None
        crowd = task.crowd
        if outcome.transient == MEMORY:
            if crowd == 1:
                return None
            crowd = max(1, (crowd or pool.crowds()[task.place or ""]) // 2)
        else:
            self.tries[name] += 1
            if self.tries[name] > self.retries:
                return None
            if self.tries[name] == self.retries:
                crowd = 1  # the kernel kills where memory runs out
        return replace(task, crowd=crowd)


def outcome_of(given: Any, config: Config) -> Outcome:
    """What a worker gave, or what became of it. Raises DiskFull."""
    if not isinstance(given, Failed):
        outcome: Outcome = given
        return outcome
    if given.kind == DiskFull.__name__:
        raise disk_full(outputs_of(config))
    return Outcome(
        "failed", given.error, given.traceback, MACHINE if given.kind == WORKER_DIED else None, recorded=False
    )


def record_failure(job: Job, outcome: Outcome, newer_than: float = 0.0) -> None:
    """Write the record of a run that could not write its own, unless another process has the run or has done it."""
    record: dict[str, Any] = {"key": job.key, "status": "failed", "axes": axes(job.config)}
    record |= {"error": outcome.error, "traceback": outcome.traceback, "transient": outcome.transient}
    try:
        with claim(claim_of(outputs_of(job.config), job.key), wait=False):
            if not is_done(folder_of(job), newer_than):
                write_json(folder_of(job) / RECORD, record)
    except Claimed:
        pass
    except OSError as error:
        if is_full(error):
            raise disk_full(outputs_of(job.config)) from error
        raise


class _Bar:
    """Progress bars with the time left; plain lines, ten in all, where the output is no terminal."""

    def __init__(self, console: Console, num_workers: int, donors: int, runs: int) -> None:
        self.console, self.num_workers = console, num_workers
        columns = (TextColumn("{task.description:>6}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("left"), TimeRemainingColumn())  # fmt: skip
        self.progress = Progress(*columns, console=console) if console.is_terminal else None
        self.total = {name: number for name, number in (("donors", donors), ("runs", runs)) if number}
        self.done = dict.fromkeys(self.total, 0)

    def __enter__(self) -> _Bar:
        (self.progress or nullcontext()).__enter__()
        self.start = time.perf_counter()
        if self.progress:
            self.rows = {name: self.progress.add_task(name, total=total) for name, total in self.total.items()}
        else:
            parts = ", ".join(counted(total, name[:-1]) for name, total in self.total.items())
            self.console.print(f"{parts} on {counted(self.num_workers, 'worker')}")
        return self

    def __exit__(self, *error: Any) -> None:
        (self.progress or nullcontext()).__exit__(*error)

    def advance(self, name: str) -> None:
        self.done[name] += 1
        done, total = self.done[name], self.total[name]
        if self.progress:
            self.progress.update(self.rows[name], completed=done)
        elif done == total or done * 10 // total > (done - 1) * 10 // total:
            elapsed = time.perf_counter() - self.start
            left = elapsed / done * (total - done)
            self.console.print(f"{name}: {done}/{total} in {elapsed:.0f} s, about {left:.0f} s left")
