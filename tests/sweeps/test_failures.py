"""One run's failure: what is recorded, what is tried again, what stops a sweep and loses nothing."""

import errno
import os
import subprocess
from collections import Counter
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch

from conftest import TINY
from layergraft.config.compose import Composer
from layergraft.errors import UserError
from layergraft.runs import train as runs
from layergraft.runs.failures import MACHINE, MEMORY, DiskFull, is_full, spoils_its_process, transient
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute
from layergraft.store.records import RunRecord, read_record, run_folder, write_record
from layergraft.sweeps import execution
from layergraft.sweeps.worker import Outcome
from layergraft.sweeps.worker_pool import WORKER_DIED, Failed

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error, kind",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), MEMORY),
        (RuntimeError("GET was unable to find an engine to execute this computation"), MEMORY),
        (MemoryError(), MEMORY),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), MACHINE),
        (OSError(errno.ESTALE, "Stale file handle"), MACHINE),
        (ConnectionResetError(), MACHINE),
        (FileNotFoundError(errno.ENOENT, "No such file"), None),
        (ValueError("out of luck"), None),
        (UserError("unknown strategy"), None),
    ],
)
def test_what_may_pass(error, kind):
    assert transient(error) == kind
    try:
        raise RuntimeError("around it") from error
    except RuntimeError as wrapped:
        assert transient(wrapped) == kind
    assert spoils_its_process(error) == isinstance(error, torch.AcceleratorError)


class Raise(pl.Callback):
    def __init__(self, error, epoch):
        self.error, self.epoch = error, epoch

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            raise self.error


@pytest.fixture
def tiny(config, tmp_path):
    return lambda *overrides: config(
        *TINY[:1], *TINY[3:], "host=resnet8", "donor=random", "schedule.epochs=6", "exec.checkpoint_seconds=0",
        "exec.threads=1", f"exec.outputs={tmp_path / 'outputs'}", *overrides)  # fmt: skip


@pytest.mark.parametrize("error", [FULL, RuntimeError("No space left on device (os error 28)")])
def test_a_full_disk_fails_no_run_and_it_goes_on_from_its_checkpoint(tiny, tmp_path, error):
    with pytest.raises(DiskFull, match="is full; once there is room the same command goes on where it was"):
        execute(plan_run(tiny()), [Raise(error, 4)])
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert read_record(folder) is None and (folder / "last.ckpt").exists()
    again = execute(plan_run(tiny()))
    whole = execute(plan_run(tiny(f"exec.outputs={tmp_path / 'whole'}")))
    assert again.resumed and again.metrics == whole.metrics


def test_a_disk_that_is_full_when_the_record_is_written(tiny, tmp_path, monkeypatch):
    def full(folder, record):
        raise FULL

    monkeypatch.setattr(runs, "write_record", full)
    with pytest.raises(DiskFull):
        execute(plan_run(tiny()))
    monkeypatch.undo()
    again = execute(plan_run(tiny()))
    assert again.resumed and again.status == "completed"


@pytest.fixture
def small_disk(tmp_path):
    """Function: bytes -> a folder on a disk of that size."""
    mounted = []

    def mount(size):
        (tmp_path / "disk").mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path / "disk")]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a disk cannot be mounted here")
        mounted.append(tmp_path / "disk")
        return mounted[0]

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_sweep_on_a_disk_that_fills_up_ends_in_one_line_and_goes_on_when_there_is_room(small_disk, tmp_path, command):
    outputs = small_disk("3m")
    (outputs / "ballast").write_bytes(bytes(2_800_000))
    arguments = ["-m", "seed=range(4)", "donor=random", "host=resnet8", "strategy=freeze", *TINY[:2], "optim.batch_size=25",
                 "exec.device=cpu", "exec.checkpoint_seconds=0", "exec.sweep=full", f"exec.outputs={outputs}"]  # fmt: skip
    code, _, err = command("train", *arguments)
    *_, line = err.splitlines()
    assert code == 1 and line.startswith(f"error: the disk of {outputs} is full") and "Traceback" not in err
    (outputs / "ballast").unlink()
    code, _, err = command("train", *arguments)
    assert code == 0 and "4 of 4 runs completed" in err
    elsewhere = [*arguments[:-1], f"exec.outputs={tmp_path / 'calm'}"]
    assert command("train", *elsewhere)[0] == 0
    for calm in (tmp_path / "calm" / "runs").iterdir():
        for name in ("curves.csv", "model.safetensors"):
            assert (outputs / "runs" / calm.name / name).read_bytes() == (calm / name).read_bytes()


def test_a_run_that_was_taken_over_while_it_was_stopped_commits_nothing(tiny, tmp_path, monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def lost(marker, wait=True):
        yield lambda: False

    monkeypatch.setattr(runs, "lease", lost)
    with pytest.raises(runs.LeaseHeld, match="another process has taken .* over"):
        execute(plan_run(tiny()))
    assert not list(tmp_path.glob("outputs/runs/*/record.json"))


class Scripted:
    """A crew in this process: `script(attempt, number of tasks at work)` -> the outcome."""

    def __init__(self, script):
        self.script, self.working = script, 0

    def start(self, device):
        return _Scripted(self, device)

    def wait(self, workers):
        self.working = len(workers)
        return workers[:1]


class _Scripted:
    def __init__(self, crew, device):
        self.crew, self.device = crew, device

    def send(self, function, argument):
        self.function, self.argument = function, argument

    def outcome(self):
        return self.crew.script(self.argument, self.crew.working)

    def rest(self):
        pass

    def stop(self, interrupt):
        pass

    def join(self):
        pass


@pytest.fixture
def jobs(tmp_path):
    """Function: number of seeds -> the planned runs of a sweep."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from layergraft.config.compose import conf_dir

    def planned(number, *overrides):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            fixed = [
                *TINY[:2],
                "data@host.pretrain.data=none",
                "host=resnet8",
                "donor=none",
                "strategy=full",
                "optim.batch_size=25",
                "exec.device=cpu",
            ]
            fixed = [*fixed, f"exec.outputs={tmp_path}", *overrides]
            master = compose("config", overrides=fixed, return_hydra_config=True)
            composer = Composer(GlobalHydra.instance().hydra.config_loader, master)
            return execution.planned(composer.each([[*fixed, f"seed={seed}"] for seed in range(number)]))

    return planned


def seed_of(attempt):
    return attempt.plan.config.seed


def test_what_died_is_tried_again_and_then_recorded_with_what_is_known(jobs, tmp_path):
    tried = Counter()

    def script(attempt, _):
        tried[seed_of(attempt)] += 1
        if seed_of(attempt) == 1 or (seed_of(attempt) == 2 and tried[2] < 3):
            return Failed(WORKER_DIED, "its worker process died: killed by SIGKILL", "")
        return Outcome("completed")

    planned = jobs(4)
    execution.run(planned, crew=Scripted(script), where=["", ""])
    assert tried == {0: 1, 1: 3, 2: 3, 3: 1}  # exec.retries is 2
    record = read_record(run_folder(tmp_path, planned[1].key))
    assert (record.status, record.error) == ("failed", "its worker process died: killed by SIGKILL")
    tried.clear()
    execution.run(jobs(2, "exec.retries=0"), crew=Scripted(script), where=[""])
    assert tried == {0: 1, 1: 1}


def test_what_runs_out_of_memory_is_tried_with_fewer_neighbours_until_it_is_alone(jobs):
    seen = []

    def script(attempt, working):
        seen.append((seed_of(attempt), working))
        if seed_of(attempt) == 3 and working > 1:
            return Outcome("failed", "OutOfMemoryError", transient=MEMORY, recorded=False)
        if seed_of(attempt) == 5:
            return Outcome("failed", "OutOfMemoryError", transient=MEMORY, recorded=False)
        return Outcome("completed")

    execution.run(jobs(8), crew=Scripted(script), where=["0"] * 4)
    third = [working for seed, working in seen if seed == 3]
    assert third == [4, 2, 1]  # all, half, alone: and there it went through
    assert [working for seed, working in seen if seed == 5][-1] == 1  # alone and still too large: that is its end
    assert Counter(seed for seed, _ in seen) == {0: 1, 1: 1, 2: 1, 3: 3, 4: 1, 5: 3, 6: 1, 7: 1}


def test_what_is_to_be_said_of_the_precision_is_said_once(jobs, monkeypatch, capsys):
    monkeypatch.setattr(execution, "precision_note", lambda config: "precision:   float32, since")
    execution.run(jobs(3), crew=Scripted(lambda *_: Outcome("completed")), where=[""])
    assert capsys.readouterr().err.count("precision:   float32, since") == 1


def test_what_another_process_is_at_is_waited_for_after_all_else(jobs):
    seen = []

    def script(attempt, _):
        seen.append((seed_of(attempt), attempt.wait))
        return Outcome("leased" if seed_of(attempt) == 0 and not attempt.wait else "completed")

    execution.run(jobs(3), crew=Scripted(script), where=[""])
    assert seen == [(0, False), (1, False), (2, False), (0, True)]


def test_a_full_disk_ends_the_sweep(jobs):
    def script(attempt, _):
        return Failed("DiskFull", "", "")

    with pytest.raises(DiskFull):
        execution.run(jobs(3), crew=Scripted(script), where=[""])
    assert is_full(FULL) and not is_full(ValueError())


def test_a_workers_own_error_is_recorded_with_its_traceback(jobs, tmp_path):
    planned = jobs(1)
    execution.run(planned, crew=Scripted(lambda *_: Failed("KeyError", "'a'", "Traceback ... in there")), where=[""])
    record = read_record(run_folder(tmp_path, planned[0].key))
    assert (record.status, record.error, record.traceback) == ("failed", "'a'", "Traceback ... in there")


def test_a_worker_that_is_killed_in_mid_run_costs_nothing(tmp_path, command, monkeypatch):
    import threading
    import time

    from benchmarks.chaos import workers

    arguments = ["-m", "seed=0,1", "donor=random", "host=resnet8", "strategy=freeze", "host.width=4", "schedule.epochs=20",
                 "optim.batch_size=25", "exec.device=cpu", "exec.checkpoint_seconds=0", "exec.sweep=killed"]  # fmt: skip
    killed = []

    def kill():
        while not list(tmp_path.glob("wild/runs/*/last.ckpt")):
            time.sleep(0.01)
        killed.append(workers(os.getpid())[0])
        os.kill(killed[0], 9)

    thread = threading.Thread(target=kill)
    thread.start()
    code, _, err = command("train", *arguments, f"exec.outputs={tmp_path / 'wild'}")
    thread.join()
    assert code == 0 and killed and "2 of 2 runs completed" in err
    assert command("train", *arguments, f"exec.outputs={tmp_path / 'calm'}")[0] == 0
    for calm in (tmp_path / "calm" / "runs").iterdir():
        assert (tmp_path / "wild" / "runs" / calm.name / "curves.csv").read_bytes() == (
            calm / "curves.csv"
        ).read_bytes()


def test_a_run_that_is_no_longer_what_was_planned_is_not_trained(jobs, tmp_path, monkeypatch):
    from layergraft.sweeps.worker import Attempt, attempt

    (planned,) = jobs(1)
    monkeypatch.setattr(runs, "fit", None)  # to train would raise
    outcome = attempt(Attempt(replace(planned, key="another.key")))
    assert outcome.status == "failed" and "it was planned as another.key and is full.resnet8.none" in outcome.error
    assert not outcome.recorded and not list(tmp_path.glob("runs/*"))


def test_errors_around_the_training_are_told_apart_too(jobs, monkeypatch):
    from layergraft.sweeps import worker as work

    (planned,) = jobs(1)
    for error, kind in ((OSError(errno.ESTALE, "Stale file handle"), MACHINE), (KeyError("a"), None)):
        monkeypatch.setattr(work, "execute", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        outcome = work.attempt(work.Attempt(planned))
        assert (outcome.status, outcome.transient) == ("failed", kind) and "Traceback" in outcome.traceback
    monkeypatch.setattr(work, "execute", lambda *_, **__: (_ for _ in ()).throw(FULL))
    with pytest.raises(DiskFull):
        work.attempt(work.Attempt(planned))


def test_a_process_whose_gpu_answers_nothing_but_errors_is_replaced(jobs, monkeypatch):
    """Whatever the first error was called: another process may do better."""
    from layergraft.sweeps import worker as work

    def broken():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    (planned,) = jobs(1)
    monkeypatch.setattr(work, "execute", lambda *_, **__: RunRecord("a", "failed", error="RuntimeError: cuDNN error"))
    attempt = work.Attempt(planned)
    assert (work.attempt(attempt).transient, work.attempt(attempt).process_spoilt) == (None, False)
    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    assert (work.attempt(attempt).transient, work.attempt(attempt).process_spoilt) == (MACHINE, True)


def test_a_rerun_that_fails_is_not_hidden_by_the_old_record(jobs, tmp_path):
    import time

    (planned,) = jobs(1)
    folder = run_folder(tmp_path, planned.key)
    write_record(folder, RunRecord(planned.key, "completed"))
    lost = Failed(WORKER_DIED, "it died", "")
    execution.run([planned], newer_than=time.time() + 60, crew=Scripted(lambda *_: lost), where=[""])
    assert read_record(folder).status == "failed"


def test_a_sweep_is_planned_for_gpus_where_there_is_none(config, monkeypatch):
    from layergraft.runs.plan import for_gpus, plan_run

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    here = config("strategy=freeze")
    there = for_gpus(here)
    assert plan_run(there).backend.precision == "bf16_mixed" and plan_run(there).key != plan_run(here).key
    assert plan_run(there).key == plan_run(config("strategy=freeze", "precision=bf16_mixed")).key
    for fixed in (config("precision=float32"), config("exec=cpu")):
        assert for_gpus(fixed) == fixed
