"""A queue of tasks for workers that stay warm between them, and of which one may die without taking the others along."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

# Imported once, in the server that the workers are forked from: what any run takes, and what some do.
PRELOAD = ["layergraft.runs.preload_imports", "sklearn.datasets", "sklearn.linear_model", "sklearn.model_selection"]
GRACE_SECONDS = 20.0  # for a worker to write down where it was
_context = multiprocessing.get_context("forkserver")


def warm() -> None:
    """Start the server that workers are forked from; it imports what they need while the caller goes on."""
    _context.set_forkserver_preload(PRELOAD)
    before = os.environ.get("PYTHONSAFEPATH", "")
    os.environ["PYTHONSAFEPATH"] = before or "1"  # else a file in this folder could stand in for a module of its name
    try:
        resource_tracker.ensure_running()  # which would unblock what is blocked next
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is not for the server's imports
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if not before:
            del os.environ["PYTHONSAFEPATH"]


@dataclass(frozen=True)
class Failed:
    """A task that raised, or whose worker died."""

    kind: str
    """The exception's name; WorkerDied."""
    error: str
    traceback: str


WORKER_DIED = "WorkerDied"


def call(function: Callable[[Any], Any], argument: Any) -> Any:
    """Return what the function gives, or Failed."""
    try:
        return function(argument)
    except Exception as error:
        return Failed(type(error).__name__, str(error), traceback.format_exc())


@dataclass(eq=False)
class Task:
    """A call that a worker is to make."""

    function: Callable[[Any], Any]
    """A module's own: it is sent by name."""
    argument: Any
    about: Any = None
    """For whoever gets the outcome."""
    crowd: int | None = None
    """At most so many tasks at its worker's place while it runs; None: as many as there are workers."""
    tries: int = 0
    """How often it was tried again, for whoever gets the outcome."""
    device: str = field(default="", init=False)
    """Where it ran."""


class Worker:
    """One process, somewhere. What it has nothing to do at, it need not define."""

    device: str
    """The GPU that it uses, or the machine."""

    def send(self, function: Callable[[Any], Any], argument: Any) -> None: ...

    def outcome(self) -> Any:
        """Return what the function gave, or Failed; of a kind `WORKER_DIED` where it must be replaced."""

    def rest(self) -> None:
        """Go without a task for now; there may be one later."""

    def stop(self, interrupt: bool) -> None:
        """End soon; `interrupt` it where it is busy."""

    def join(self) -> None: ...


class Crew(Protocol):
    """Where workers come from."""

    def start(self, device: str) -> Worker: ...

    def wait(self, workers: Sequence[Any]) -> list[Any]:
        """Of its own workers those that have an outcome, or died; at least one."""


class Pool:
    """One worker for each of `devices`, which may name one more than once; a context manager. Tasks are given out in order,
    one to each worker that is free. Ctrl-C is passed on to the workers."""

    def __init__(self, devices: Sequence[str], crew: Crew | None = None) -> None:
        self.crew: Crew = crew or Processes()
        self.workers: list[Worker] = [self.crew.start(device) for device in devices]
        self.waiting: deque[Task] = deque()
        self.busy: dict[Worker, Task] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self.workers:
            worker.stop(interrupt=kind is not None)
        for worker in self.workers:
            worker.join()

    def add(self, task: Task) -> None:
        self.waiting.append(task)

    def outcomes(self) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its outcome as it ends; more may be added meanwhile. Ends when none is left."""
        self._give()
        while self.busy:
            for worker in self.crew.wait(list(self.busy)):
                task, outcome = self.busy.pop(worker), worker.outcome()
                task.device = worker.device
                died = isinstance(outcome, Failed) and outcome.kind == WORKER_DIED
                if died or getattr(outcome, "process_spoilt", False):
                    self._replace(worker)
                self._give()
                yield task, outcome
                self._give()  # what was added on account of it

    def _replace(self, worker: Worker) -> Worker:
        worker.stop(interrupt=False)
        worker.join()
        new = self.crew.start(worker.device)
        self.workers[self.workers.index(worker)] = new
        return new

    def _give(self) -> None:
        for worker in [worker for worker in self.workers if worker not in self.busy]:
            task = self._next(worker.device)
            if task is None:
                worker.rest()
                continue
            try:
                worker.send(task.function, task.argument)
            except OSError:  # it died while it was idle
                worker = self._replace(worker)
                worker.send(task.function, task.argument)
            self.busy[worker] = task

    def _next(self, device: str) -> Task | None:
        """Take the first task that there is room for at `device`."""
        there = [task.crowd for worker, task in self.busy.items() if worker.device == device]
        if any(crowd is not None and len(there) >= crowd for crowd in there):
            return None
        found = next((task for task in self.waiting if task.crowd is None or len(there) < task.crowd), None)
        if found is not None:
            self.waiting.remove(found)
        return found

    def crowd(self, device: str) -> int:
        """Count the workers at `device`."""
        return sum(worker.device == device for worker in self.workers)


class Processes:
    """Workers on this machine, forked from a server that has imported what they need. A place that is not empty is the
    CUDA_VISIBLE_DEVICES of its workers."""

    def __init__(self) -> None:
        warm()

    def start(self, device: str) -> _Process:
        ours, theirs = _context.Pipe()
        process = _context.Process(target=_work, args=(theirs, device), daemon=True)
        process.start()
        theirs.close()  # so that the worker's death is the end of the connection
        return _Process(device, process, ours)

    def wait(self, workers: Sequence[_Process]) -> list[_Process]:
        by_connection: dict[Any, _Process] = {worker.connection: worker for worker in workers}
        return [by_connection[connection] for connection in wait(list(by_connection))]


@dataclass(eq=False)
class _Process(Worker):
    device: str
    process: Any
    connection: Connection

    def send(self, function: Callable[[Any], Any], argument: Any) -> None:
        self.connection.send((function, argument))

    def outcome(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):  # it may have died while it was sending
            self.process.join()
            code = self.process.exitcode
            how = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"it ended with exit code {code}"
            error = f"its worker process died: {how}"
            if code == -signal.SIGKILL:
                error += ", as the kernel does where memory runs out"
            return Failed(WORKER_DIED, error, error)

    def stop(self, interrupt: bool) -> None:
        if interrupt and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGINT)
        self.connection.close()  # an idle worker ends at that

    def join(self) -> None:
        self.process.join(GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _unraisable(unraisable: Any) -> None:
    """Ctrl-C that lands in somebody's `__del__` is printed by Python and lost; the pool sends another."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)


def _end_with_the_parent() -> None:
    """Where whoever gave out the tasks is killed, nobody wants the outcome: write down where this one is, and end."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _work(connection: Connection, device: str) -> None:
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before CUDA starts: it reads this once
    gc.freeze()  # what is the server's too stays shared memory: a look of the collector would copy it
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts it in the background ignores Ctrl-C
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # one that came since the fork lands here
        while True:
            connection.send(call(*connection.recv()))
    except (EOFError, KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        return
