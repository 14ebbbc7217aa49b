"""Many runs: planned whole before the first starts, each done once, shared out among warm workers."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from layergraft.config.error_messages import of_the_run
from layergraft.config.specs import Config, ExecSpec
from layergraft.donors.cache import forget_donor, is_kept
from layergraft.errors import counted, require
from layergraft.runs.failures import MACHINE, MEMORY, DiskFull, disk_full, is_full
from layergraft.runs.plan import RunPlan, plan_run, precision_note
from layergraft.runs.train import planned_record
from layergraft.store.leases import Claimed, claim
from layergraft.store.records import claim_of, is_done, write_record
from layergraft.sweeps.pool import WORKER_DIED, Crew, Failed, Pool, Task
from layergraft.sweeps.worker import Attempt, Outcome, attempt, make_donors


def planned(cells: Iterable[tuple[Sequence[str], Config]]) -> list[RunPlan]:
    """The plan of each cell (overrides, and the config that comes of them).

    Raises UserError, with the overrides, for the first that cannot be run.
    """
    plans = []
    for overrides, config in cells:
        with of_the_run(overrides):
            require(
                config.exec.resume is None, "exec.resume is of a single run; a sweep goes on with each run by itself"
            )
            require(config.exec.devices == 1, "exec.devices is of a single run; a sweep does a run on each device")
            plans.append(plan_run(config, overrides))
    return plans


def distinct(plans: Iterable[RunPlan]) -> list[RunPlan]:
    """One plan for each different run; the first of equals stays."""
    different: dict[str, RunPlan] = {}
    for one in plans:
        different.setdefault(one.key, one)
    return list(different.values())


def for_a_worker(plan: RunPlan, beside: int = 1) -> RunPlan:
    """One run among others, so many where it is: on one thread, since not the number of workers may change its last bits;
    what is to be done again is told by its age."""
    settings = plan.config.exec
    settings = replace(settings, threads=settings.threads or 1, workers=beside, rerun=False)
    return replace(plan, config=replace(plan.config, exec=settings))


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


def run(
    plans: Sequence[RunPlan], *, newer_than: float = 0.0, crew: Crew | None = None, where: Sequence[str] = ()
) -> None:
    """Do every run that the store does not have, donors first.

    What was written before `newer_than` (of the disk's clock) does not count. A run that fails is one run's failure;
    what may pass is tried again. Workers are this machine's, or come from `crew`, one for each place of `where`. Raises
    DiskFull.
    """
    todo = [plan for plan in plans if not is_done(plan.folder, newer_than)]
    console = Console(stderr=True)
    if len(todo) < len(plans):
        console.print(f"{len(plans) - len(todo)} of {counted(len(plans), 'run')} in the store already")
    if todo:
        for note in {precision_note(plan) for plan in todo} - {None}:
            console.print(note, markup=False)
        there = list(where)[: len(todo)] or places(todo[0].config.exec, len(todo))
        _Sweep(todo, newer_than).work(console, there, crew)


class _Sweep:
    """The runs that are to be done, and the donors that they wait for."""

    def __init__(self, todo: Sequence[RunPlan], newer_than: float) -> None:
        settings = todo[0].config.exec
        self.retries, self.newer_than = settings.retries, newer_than
        self.todo = todo
        self.tries: dict[Any, int] = defaultdict(int)
        self.held: dict[tuple[str, ...], list[RunPlan]] = defaultdict(
            list
        )  # keys of donors -> the runs that wait for them
        if newer_than:
            for outputs, key in {(plan.outputs, key) for plan in todo for key in plan.donor_keys}:
                forget_donor(outputs, key, newer_than)
        for plan in todo:
            if not all(is_kept(plan.outputs, key) for key in plan.donor_keys):
                self.held[plan.donor_keys].append(plan)

    def work(self, console: Console, where: Sequence[str], crew: Crew | None) -> None:
        self.beside = max(Counter(where).values())
        with Pool(where, crew) as pool, _Bar(console, len(where), len(self.held), len(self.todo)) as bar:
            for keys, plans in self.held.items():
                pool.add(Task(make_donors, for_a_worker(plans[0]), keys))
            for plan in self.todo:
                if plan.donor_keys not in self.held:
                    pool.add(self._task(plan))
            for task, given in pool.outcomes():
                outcome = outcome_of(given, self.todo[0].outputs)
                again = self._again(task, outcome, pool)
                if again is not None:
                    pool.add(again)
                elif isinstance(task.about, RunPlan):
                    bar.advance("runs")
                    if not outcome.recorded:
                        record_failure(task.about, outcome, self.newer_than)
                else:
                    bar.advance("donors")
                    for plan in self.held.pop(task.about):
                        if outcome.status == "completed":
                            pool.add(self._task(plan))
                        else:
                            bar.advance("runs")
                            record_failure(plan, outcome, self.newer_than)

    def _task(self, plan: RunPlan, wait: bool = False, crowd: int | None = None) -> Task:
        return Task(attempt, Attempt(for_a_worker(plan, self.beside), wait, self.newer_than), plan, crowd)

    def _again(self, task: Task, outcome: Outcome, pool: Pool) -> Task | None:
        """The task for another try; None where it is settled.

        What another process is at is waited for, after all else. What has run out of memory is tried with half as many
        beside it on its GPU until it is alone there; what else may pass, `exec.retries` times, the last time alone.
        """
        about = task.about
        name = about.key if isinstance(about, RunPlan) else about
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


def outcome_of(given: Any, outputs: Path) -> Outcome:
    """What a worker gave, or what became of it. Raises DiskFull."""
    if not isinstance(given, Failed):
        outcome: Outcome = given
        return outcome
    if given.kind == DiskFull.__name__:
        raise disk_full(outputs)
    return Outcome(
        "failed", given.error, given.traceback, MACHINE if given.kind == WORKER_DIED else None, recorded=False
    )


def record_failure(plan: RunPlan, outcome: Outcome, newer_than: float = 0.0) -> None:
    """Write the record of a run that could not write its own, unless another process has the run or has done it."""
    record = planned_record(plan, "failed")
    record.error, record.traceback, record.transient = outcome.error, outcome.traceback, outcome.transient
    try:
        with claim(claim_of(plan.outputs, plan.key), wait=False):
            if not is_done(plan.folder, newer_than):
                write_record(plan.folder, record)
    except Claimed:
        pass
    except OSError as error:
        if is_full(error):
            raise disk_full(plan.outputs) from error
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
