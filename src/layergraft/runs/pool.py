"""Worker processes that stay warm between tasks, and of which one may die without taking the others along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

# Imported once, in the server that the workers are forked from.
PRELOAD = ["layergraft.runs.run", "torchvision.models.resnet", "sklearn.model_selection", "sklearn.datasets"]
_context = multiprocessing.get_context("forkserver")


def warm() -> None:
    """Start the server that workers are forked from; it imports what they need while the caller goes on."""
    _context.set_forkserver_preload(PRELOAD)
    os.environ["PYTHONSAFEPATH"] = "1"  # else a file in the current folder could stand in for a module of that name
    forkserver.ensure_running()
    del os.environ["PYTHONSAFEPATH"]


@dataclass(frozen=True)
class Failed:
    """A task that raised, or whose worker died."""

    error: str
    traceback: str


@dataclass
class _Worker:
    process: Any
    connection: Connection


class Pool:
    """`num_workers` processes; `environments[i]` is added to the environment of the i-th.

    Use as a context manager. Ctrl-C is passed on to the workers, which get `GRACE_SECONDS` to write down where they were.
    """

    GRACE_SECONDS = 20

    def __init__(self, environments: Sequence[dict[str, str]]) -> None:
        warm()
        self.workers = [self._start(environment) for environment in environments]
        self.environments = environments

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self.workers:
            if kind is not None and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGINT)
            worker.connection.close()  # an idle worker ends at that
        for worker in self.workers:
            worker.process.join(self.GRACE_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    @staticmethod
    def _start(environment: dict[str, str]) -> _Worker:
        ours, theirs = _context.Pipe()
        process = _context.Process(target=_work, args=(theirs, environment), daemon=True)
        process.start()
        theirs.close()  # so that the worker's death is the end of the connection
        return _Worker(process, ours)

    def run(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (index of the task, its result or `Failed`) as they end; `function` must be a module's own."""
        waiting = deque(enumerate(tasks))
        busy: dict[Connection, tuple[int, int]] = {}  # connection -> (worker, task)

        def give(number: int) -> None:
            if waiting:
                index, task = waiting.popleft()
                try:
                    self.workers[number].connection.send((function, task))
                except (BrokenPipeError, ConnectionResetError):  # it died while it was idle
                    self.workers[number] = self._start(self.environments[number])
                    self.workers[number].connection.send((function, task))
                busy[self.workers[number].connection] = (number, index)

        for number in range(len(self.workers)):
            give(number)
        while busy:
            for connection in wait(list(busy)):
                number, index = busy.pop(connection)
                try:
                    outcome = connection.recv()
                except (EOFError, ConnectionResetError):
                    process = self.workers[number].process
                    process.join()
                    error = f"its worker process died (exit code {process.exitcode})"
                    outcome = Failed(error, error)
                    self.workers[number] = self._start(self.environments[number])
                give(number)
                yield index, outcome


def _unraisable(unraisable: Any) -> None:
    """Ctrl-C that lands in somebody's `__del__` is printed by Python and lost; the pool sends another."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)


def _work(connection: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)  # before CUDA starts: it reads CUDA_VISIBLE_DEVICES once
    sys.unraisablehook = _unraisable
    try:
        while True:
            function, task = connection.recv()
            try:
                outcome = function(task)
            except Exception as error:
                outcome = Failed(str(error), traceback.format_exc())
            connection.send(outcome)
    except (EOFError, KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        return
