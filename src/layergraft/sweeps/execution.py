"""Many runs: planned whole before the first starts, each done once, shared out among warm workers."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from layergraft.config.error_messages import of_the_run
from layergraft.config.schema import Config, ExecSpec
from layergraft.donors.donor_cache import is_kept
from layergraft.errors import counted, require
from layergraft.runs.build import discard_made, head_note, host_is_kept
from layergraft.runs.failures import MACHINE, MEMORY, DiskFull, disk_full, is_full
from layergraft.runs.plan import RunPlan, plan_run, precision_note
from layergraft.runs.train import planned_record
from layergraft.store.leases import LeaseHeld, lease
from layergraft.store.records import is_done, lease_path, summarized, write_record
from layergraft.sweeps.worker import Attempt, Outcome, attempt, make_donors, make_host
from layergraft.sweeps.worker_pool import WORKER_DIED, Crew, Failed, Pool, Task

Need = tuple[Callable[[Attempt], Outcome], tuple[str, ...]]  # what makes it, and the keys of what is made


def planned(combinations: Iterable[tuple[Sequence[str], Config]]) -> list[RunPlan]:
    """The plan of each combination (overrides, and the config that comes of them).

    Raises UserError, with the overrides, for the first that cannot be run.
    """
    plans = []
    for overrides, config in combinations:
        with of_the_run(overrides):
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


def devices(settings: ExecSpec, num_jobs: int) -> list[str]:
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
    """Do every run that the store does not have, hosts that are to be pretrained and donors first.

    What was written before `newer_than` (of the disk's clock) does not count. A run that fails is one run's failure;
    what may pass is tried again. Workers are this machine's, or come from `crew`, one for each place of `where`. Raises
    DiskFull.
    """
    todo = [plan for plan in plans if not is_done(plan.folder, newer_than)]
    console = Console(stderr=True)
    if len(todo) < len(plans):
        console.print(f"{len(plans) - len(todo)} of {counted(len(plans), 'run')} in the store already")
    if not todo:
        return
    for note in {precision_note(plan) for plan in todo} - {None}:
        console.print(note, markup=False, soft_wrap=True)
    for note in summarized(note for plan in todo for note in plan.notes):
        console.print(f"warning: {note}", markup=False, soft_wrap=True)
    of_weights = {(plan.config.host.weights, plan.data, plan.keeps_head): plan for plan in todo}
    for note in {head_note(plan) for plan in of_weights.values()} - {None}:
        console.print(note, markup=False, soft_wrap=True)
    where = list(where)[: len(todo)] or devices(todo[0].config.exec, len(todo))
    beside = max(Counter(where).values())
    if newer_than:
        for plan in todo:
            discard_made(plan, newer_than)
    needs = {plan.key: _missing(plan) for plan in todo}
    waiting: dict[Need, list[RunPlan]] = defaultdict(list)
    for plan in todo:
        for need in needs[plan.key]:
            waiting[need].append(plan)
    # Hosts come first: some donors are cut from them, and would wait for them while they hold a worker.
    in_order = sorted(waiting, key=lambda need: need[0] is not make_host)
    number = Counter(make for make, _ in in_order)
    totals = {"hosts": number[make_host], "donors": number[make_donors], "runs": len(todo)}
    with Pool(where, crew) as pool, _Bar(console, len(where), **totals) as bar:

        def add(plan: RunPlan) -> None:
            pool.add(Task(attempt, Attempt(for_a_worker(plan, beside), newer_than=newer_than), [plan]))

        for need in in_order:
            pool.add(Task(need[0], Attempt(for_a_worker(waiting[need][0])), waiting[need]))
        for plan in todo:
            if not needs[plan.key]:
                add(plan)
        for task, outcome in settled(pool):
            if task.function is attempt:
                bar.count("runs")
                if not outcome.recorded:
                    record_failure(task.about[0], outcome, newer_than)
                continue
            bar.count("hosts" if task.function is make_host else "donors")
            for plan in task.about:
                left = needs[plan.key]
                if not left:
                    continue  # it has failed for another reason
                left -= {need for need in left if need[0] is task.function}
                if outcome.status != "completed":
                    left.clear()
                    bar.count("runs")
                    record_failure(plan, outcome, newer_than)
                elif not left:
                    add(plan)


def _missing(plan: RunPlan) -> set[Need]:
    """What has to be made before the run can start: its host, its donors."""
    needs: set[Need] = set()
    if plan.host_key is not None and not host_is_kept(plan):
        needs.add((make_host, (plan.host_key,)))
    if not all(is_kept(plan.outputs, key) for key in plan.donor_keys):
        needs.add((make_donors, plan.donor_keys))
    return needs


def settled(pool: Pool) -> Iterator[tuple[Task, Outcome]]:
    """Yield each task, of an Attempt, with what became of it in the end, after any other tries. Raises DiskFull."""
    for task, given in pool.outcomes():
        outcome = given
        if isinstance(given, Failed):
            if given.kind == DiskFull.__name__:
                raise disk_full(task.argument.plan.outputs)
            kind = MACHINE if given.kind == WORKER_DIED else None
            outcome = Outcome("failed", given.error, given.traceback, kind, recorded=False)
        again = _again(task, outcome, pool)
        if again is None:
            yield task, outcome
        else:
            pool.add(again)


def _again(task: Task, outcome: Outcome, pool: Pool) -> Task | None:
    """Return the task for another try; None where it is settled.

    What another process is at is waited for, after all else. What has run out of memory is tried with half as many
    beside it on its GPU until it is alone there; what else may pass, `exec.retries` times, the last time alone.
    """
    if outcome.status == "leased":
        return replace(task, argument=replace(task.argument, wait=True), crowd=None)
    if outcome.transient == MEMORY and task.crowd != 1:
        return replace(task, crowd=max(1, (task.crowd or pool.crowd(task.device)) // 2))
    retries = task.argument.plan.config.exec.retries
    if outcome.transient in (None, MEMORY) or task.tries >= retries:
        return None
    crowd = 1 if task.tries + 1 == retries else task.crowd  # the kernel kills where memory runs out
    return replace(task, tries=task.tries + 1, crowd=crowd)


def record_failure(plan: RunPlan, outcome: Outcome, newer_than: float = 0.0) -> None:
    """Write the record of a run that could not write its own, unless another process has the run or has done it."""
    record = planned_record(plan, "failed")
    record.error, record.traceback, record.transient = outcome.error, outcome.traceback, outcome.transient
    try:
        with suppress(LeaseHeld), lease(lease_path(plan.outputs, plan.key), wait=False):
            if not is_done(plan.folder, newer_than):
                write_record(plan.folder, record)
    except OSError as error:
        if is_full(error):
            raise disk_full(plan.outputs) from error
        raise


class _Bar(Progress):
    """Progress bars with the time left; plain lines, ten in all, where the output is no terminal."""

    def __init__(self, console: Console, num_workers: int, **totals: int) -> None:
        columns = (TextColumn("{task.description:>6}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("left"), TimeRemainingColumn())  # fmt: skip
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self.totals = {name: total for name, total in totals.items() if total}
        self.rows = {name: self.add_task(name, total=total) for name, total in self.totals.items()}
        if self.disable:
            parts = ", ".join(counted(total, name[:-1]) for name, total in self.totals.items())
            console.print(f"{parts} on {counted(num_workers, 'worker')}")

    def count(self, name: str) -> None:
        """Count one more of `name` as ended."""
        self.advance(self.rows[name])
        row, total = self.tasks[self.rows[name]], self.totals[name]
        done, elapsed = int(row.completed), row.elapsed or 0.0
        if self.disable and done * 10 // total > (done - 1) * 10 // total:
            left = elapsed / done * (total - done)
            self.console.print(f"{name}: {done}/{total} in {elapsed:.0f} s, about {left:.0f} s left")
