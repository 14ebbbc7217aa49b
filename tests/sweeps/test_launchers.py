"""Ray and SLURM: the same records, bit for bit, and a worker's death is no loss."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from benchmarks.chaos import differences

from conftest import LAYERGRAFT
from layergraft.store.records import read_record

SMALL = ["-m", "data=digits_0_to_4", "site=early", "seed=range(3)", "donor=random", "host=resnet8", "strategy=freeze", "host.width=4", "optim.batch_size=25",
         "exec.device=cpu", "exec.checkpoint_seconds=0", "exec.sweep=small"]  # fmt: skip


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Function: epochs -> a store with the sweep, done by this machine's own workers."""
    done = {}

    def store(epochs):
        if epochs not in done:
            from layergraft.cli.commands import main

            done[epochs] = tmp_path_factory.mktemp("calm") / "outputs"
            main(["train", *SMALL, f"schedule.epochs={epochs}", f"exec.outputs={done[epochs]}"])
        return done[epochs]

    return store


def program(outputs, epochs, *overrides):
    return [LAYERGRAFT, "train", *SMALL, f"schedule.epochs={epochs}", f"exec.outputs={outputs}", *overrides]


@pytest.mark.slow  # half a minute goes to starting Ray
def test_a_ray_cluster_survives_the_death_of_a_worker(calm, tmp_path):
    pytest.importorskip("ray")
    here = subprocess.Popen(program(tmp_path, 12, "hydra/launcher=ray"), stderr=subprocess.PIPE, text=True)

    def kill():
        while here.poll() is None and not list(tmp_path.glob("runs/*/last.ckpt")):
            time.sleep(0.01)
        found = subprocess.run(["pgrep", "--full", "ray::_Hand"], capture_output=True, text=True).stdout.split()
        for pid in found[:1]:
            killed.append(pid)
            os.kill(int(pid), signal.SIGKILL)

    killed = []
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        _, err = here.communicate(timeout=300)
    finally:
        here.kill()
        thread.join()
    assert here.returncode == 0 and len(killed) == 1, err
    assert differences(calm(12), tmp_path) == {"lost": [], "more": [], "different": []}


def test_a_ray_that_is_not_there(tmp_path, command):
    pytest.importorskip("ray")
    address = ["hydra/launcher=ray", "hydra.launcher.address=127.0.0.1:1"]
    code, _, err = command("train", *SMALL, "schedule.epochs=1", *address, f"exec.outputs={tmp_path}")
    assert code == 2 and "error: hydra.launcher.address is 127.0.0.1:1: " in err and "Traceback" not in err


def test_without_slurm(tmp_path, command, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, _, err = command("train", *SMALL, "schedule.epochs=1", "hydra/launcher=slurm", f"exec.outputs={tmp_path}")
    assert code == 2 and "error: hydra/launcher=slurm needs SLURM's sbatch, which is not on this machine" in err


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A SLURM cluster of one node, this machine."""
    if shutil.which("sbatch") is None or shutil.which("munged") is None:
        pytest.skip("SLURM is not installed here")
    folder = tmp_path_factory.mktemp("slurm")
    script = Path(__file__).parents[1] / "slurm_here.sh"
    subprocess.run(["bash", script, "start", folder], check=True, capture_output=True, timeout=120)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield folder
    del os.environ["SLURM_CONF"]
    subprocess.run(["bash", script, "stop", folder], check=True, timeout=60)


SLURM = ["hydra/launcher=slurm", "hydra.launcher.jobs=2", "hydra.launcher.cpus_per_task=1"]


@pytest.mark.slow
def test_a_slurm_array(cluster, calm, tmp_path):
    here = subprocess.run(program(tmp_path, 2, *SLURM), stderr=subprocess.PIPE, text=True, timeout=300)
    assert here.returncode == 0, here.stderr
    assert re.search(r"SLURM jobs \d+: layergraft-small", here.stderr) and "3 of 3 runs completed" in here.stderr
    assert len(list(tmp_path.glob("sweeps/small/slurm/*_log.out"))) == 2, "an array of two jobs"
    assert differences(calm(2), tmp_path) == {"lost": [], "more": [], "different": []}


@pytest.mark.slow  # SLURM counts in minutes
def test_a_slurm_array_of_which_one_job_is_requeued_and_the_other_runs_out_of_time(cluster, calm, tmp_path):
    # SLURM tells a job that its time will be up 75 s before the end of 2 minutes, or up to half a minute sooner.
    times = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=75"]
    here = subprocess.Popen(program(tmp_path, 180, *SLURM, *times), stderr=subprocess.PIPE, text=True)
    while here.poll() is None and not list(tmp_path.glob("runs/*/last.ckpt")):
        time.sleep(0.05)
    running = subprocess.run(["squeue", "--noheader", "--states=R", "--format=%i"], capture_output=True, text=True)
    jobs = sorted(running.stdout.split())
    assert all(re.fullmatch(r"\d+_\d", job) for job in jobs), "they are jobs of one array"
    subprocess.run(["scontrol", "requeue", jobs[0]], check=True)  # as a preemption does: it is killed
    _, err = here.communicate(timeout=400)
    log = "".join(path.read_text() for path in tmp_path.glob("sweeps/small/slurm/*_log.*"))
    assert here.returncode == 0, err + log
    assert re.search(r"SLURM jobs \d+: layergraft-small", err) and "3 of 3 runs completed" in err
    assert "Caught signal SIGUSR2" in log and "this job is timed-out" in log
    assert differences(calm(180), tmp_path) == {"lost": [], "more": [], "different": []}
    assert any(read_record(path.parent).resumed for path in tmp_path.glob("runs/*/record.json"))


def test_what_slurm_does_not_take_is_one_line(cluster, tmp_path, command):
    bad = [*SLURM, "hydra.launcher.partition=gold"]
    code, _, err = command("train", *SMALL, "schedule.epochs=1", *bad, f"exec.outputs={tmp_path}")
    *_, line = err.splitlines()
    assert code == 2 and line.startswith("error: SLURM did not take the jobs: ") and "partition" in line
