"""Workers: warm, and one at a time may die."""

import os
import signal

import pytest

from layergraft.runs.pool import Failed, Pool


def square(x):
    if x == 3:
        raise ValueError("three")
    if x == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x, os.getpid(), os.environ.get("PLACE")


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr("layergraft.runs.pool.PRELOAD", [])


def test_every_task_ends_whatever_becomes_of_the_others():
    with Pool([{"PLACE": "a"}, {"PLACE": "b"}]) as pool:
        outcomes = dict(pool.run(square, range(10)))
    assert {i: o[0] for i, o in outcomes.items() if not isinstance(o, Failed)} == {
        i: i * i for i in range(10) if i not in (3, 5)
    }
    assert outcomes[3].error == "three" and "in square" in outcomes[3].traceback
    assert outcomes[5].error == "its worker process died (exit code -9)"
    assert {o[2] for o in outcomes.values() if not isinstance(o, Failed)} == {"a", "b"}


def test_workers_stay_between_tasks_and_end_with_the_pool():
    with Pool([{}]) as pool:
        pids = {outcome[1] for _, outcome in [*pool.run(square, [0, 1]), *pool.run(square, [2])]}
        (worker,) = pool.workers
    assert len(pids) == 1 and not worker.process.is_alive()
