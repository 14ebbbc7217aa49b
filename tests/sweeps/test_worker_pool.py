"""Workers: warm, one at a time may die, and no more of them at a place than a task can bear."""

import gc
import importlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from layergraft.sweeps.worker_pool import WORKER_DIED, Failed, Pool, Task


@dataclass
class Spoilt:
    pid: int
    process_spoilt: bool = True


def square(x):
    if x == 3:
        raise ValueError("three")
    if x == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x, os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def spoil(_):
    return Spoilt(os.getpid())


def nap(seconds):
    start = time.monotonic()
    time.sleep(seconds)
    return start, time.monotonic()


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr("layergraft.sweeps.worker_pool.PRELOAD", [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def outcomes(pool, function, arguments):
    for argument in arguments:
        pool.add(Task(function, argument))
    return {task.argument: outcome for task, outcome in pool.outcomes()}


def test_every_task_ends_whatever_becomes_of_the_others():
    with Pool(["0", "1"]) as pool:
        ended = outcomes(pool, square, range(10))
    assert {i: o[0] for i, o in ended.items() if not isinstance(o, Failed)} == {
        i: i * i for i in range(10) if i not in (3, 5)
    }
    assert (ended[3].kind, ended[3].error) == ("ValueError", "three") and "in square" in ended[3].traceback
    assert ended[5].kind == WORKER_DIED
    assert ended[5].error.startswith("its worker process died: killed by SIGKILL")
    assert {o[2] for o in ended.values() if not isinstance(o, Failed)} == {"0", "1"}


def test_workers_stay_between_tasks_and_end_with_the_pool():
    with Pool([""]) as pool:
        first = outcomes(pool, square, [0, 1])
        pids = {outcome[1] for outcome in [*first.values(), *outcomes(pool, square, [2]).values()]}
        (worker,) = pool.workers
    assert len(pids) == 1 and not worker.process.is_alive()


def test_tasks_may_be_added_while_others_end():
    with Pool(["", ""]) as pool:
        pool.add(Task(square, 1))
        seen = []
        for task, _ in pool.outcomes():
            seen.append(task.argument)
            if task.argument in (1, 2, 7):
                pool.add(Task(square, task.argument + 1))
                pool.add(Task(square, task.argument + 6))
    assert sorted(seen) == [1, 2, 3, 7, 8, 8, 13]


def test_a_worker_whose_process_is_spoilt_or_died_while_idle_is_replaced():
    with Pool([""]) as pool:
        (spoilt,) = outcomes(pool, spoil, [None]).values()
        ((_, pid, _),) = outcomes(pool, square, [1]).values()
        assert pid != spoilt.pid
        os.kill(pid, signal.SIGKILL)
        pool.workers[0].process.join(10)
        ((_, third, _),) = outcomes(pool, square, [2]).values()
        assert third != pid


def test_a_task_that_must_be_alone_at_its_place_is_and_other_places_go_on():
    with Pool(["0", "0", "1"]) as pool:
        outcomes(pool, square, [0, 1, 2])  # all are started
        for crowd in (None, None, 1, None, None):
            pool.add(Task(nap, 0.3, crowd, crowd=crowd))
        times = [(task, *outcome) for task, outcome in pool.outcomes()]
    (alone,) = [(task.device, start, end) for task, start, end in times if task.crowd == 1]
    beside = [
        t for t, start, end in times if t.crowd is None and t.device == alone[0] and start < alone[2] and end > alone[1]
    ]
    assert len(times) == 5 and beside == []


def test_workers_end_when_who_gave_the_tasks_is_killed(tmp_path):
    program = f"""
import sys, time
sys.path.insert(0, {str(tmp_path)!r})
from layergraft.sweeps import worker_pool
worker_pool.PRELOAD = []
from theirs import wait_for_the_end
if __name__ == "__main__":
    with worker_pool.Pool(["", ""]) as workers:
        for name in "ab":
            workers.add(worker_pool.Task(wait_for_the_end, name))
        list(workers.outcomes())
"""
    (tmp_path / "main.py").write_text(program)
    (tmp_path / "theirs.py").write_text(f"""
import os, pathlib, time
def wait_for_the_end(name):
    file = pathlib.Path({str(tmp_path)!r}, name)
    file.write_text(str(os.getpid()))
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        file.with_suffix(".told").write_text("")
""")
    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py")])
    try:
        until(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "ab"))
    finally:
        parent.kill()
        parent.wait()
    until(lambda: all((tmp_path / f"{name}.told").exists() for name in "ab"))  # they could write down where they were
    until(lambda: not any(os.path.exists(f"/proc/{(tmp_path / name).read_text()}") for name in "ab"))


def until(holds):
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")


@pytest.mark.parametrize("collects", [True, False])
def test_the_imports_leave_the_collector_as_it_was(collects):
    import layergraft.runs.preload_imports

    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        importlib.reload(layergraft.runs.preload_imports)
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()
