"""Several runs on one device: side by side, with a worker that is killed, with too little memory."""

import os
import signal
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from benchmarks.chaos import workers

from layergraft.runs.failures import MEMORY
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute
from layergraft.store.records import read_record
from layergraft.sweeps import execution

pytestmark = pytest.mark.cuda


def planned(on_device, number, *overrides):
    """Runs of so many seeds, two at a time."""
    side_by_side = ["exec.jobs_per_gpu=2", "exec.workers=2", "exec.checkpoint_seconds=0", "strategy=freeze", *overrides]
    return execution.planned(([*overrides], on_device(*side_by_side, f"seed={seed}")) for seed in range(number))


def records(jobs):
    return [read_record(job.folder) for job in jobs]


def test_two_workers_side_by_side(on_device, tmp_path, device):
    jobs = planned(on_device, 4)
    execution.run(jobs)
    there = records(jobs)
    assert [record.status for record in there] == ["completed"] * 4, there
    assert {record.environment["device"].startswith("CPU") for record in there} == {device == "cpu"}
    alone = execute(plan_run(on_device("strategy=freeze", f"exec.outputs={tmp_path / 'alone'}")))
    assert alone.key == jobs[0].key
    close = {"abs": 1e-6} if device == "cpu" else {"rel": 0.05}
    assert there[0].metrics["train/loss"] == pytest.approx(alone.metrics["train/loss"], **close)


def test_a_killed_worker_loses_no_run(on_device, tmp_path, device):
    jobs = planned(on_device, 2, "schedule.epochs=20")
    killed = []

    def kill():
        end = time.monotonic() + 60
        while not any((job.folder / "last.ckpt").exists() for job in jobs):
            if time.monotonic() > end:
                return  # no run began: the test says so
            time.sleep(0.01)
        killed.append(workers(os.getpid())[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    execution.run(jobs)
    thread.join()
    there = records(jobs)
    assert killed and [record.status for record in there] == ["completed"] * 2
    assert [len(pd.read_csv(job.folder / "curves.csv")) for job in jobs] == [20, 20]
    if device == "cpu":  # where a run has the same bits each time
        calm = [
            execute(plan_run(replace(job.config, exec=replace(job.config.exec, outputs=str(tmp_path / "calm")))))
            for job in jobs
        ]
        assert [record.metrics for record in there] == [record.metrics for record in calm]


# 1,512 images in one batch: its activations alone are some 6 GiB.
LARGE = ["data=textures", "data.per_class=250", "optim.batch_size=1000", "host=resnet20", "host.width=64", "schedule.epochs=1",
         "exec.data_gib=1", "exec.probe.epochs=[]", "precision=float32"]  # fmt: skip


def test_what_runs_out_of_memory_is_recorded_and_tried_again_alone(on_device, device, monkeypatch):
    """This process has all of the GPU but 4 GiB, until the first run has failed for it."""
    jobs = planned(on_device, 2, *LARGE)
    if device == "cpu":
        pytest.skip("a GPU's memory is filled; tests/sweeps/test_failures.py has the same on a CPU, by a script")
    free, _ = torch.cuda.mem_get_info()
    ballast = [torch.empty(free - 4 * 2**30, dtype=torch.uint8, device="cuda")]
    failed = []
    plain = execution._again

    def let_go():
        ballast.clear()
        torch.cuda.empty_cache()

    def again(task, outcome, pool):
        if outcome.transient == MEMORY:
            let_go()
            failed.append((read_record(task.argument.plan.folder), task.crowd))
        found = plain(task, outcome, pool)
        assert outcome.transient != MEMORY or found.crowd == 1
        return found

    monkeypatch.setattr(execution, "_again", again)
    try:
        execution.run(jobs)
    finally:
        let_go()
    assert failed and all(crowd is None for _, crowd in failed)
    assert all(record is None or record.status == "failed" and "memory" in record.error for record, _ in failed)
    assert any(record is not None for record, _ in failed)
    assert [record.status for record in records(jobs)] == ["completed"] * 2
