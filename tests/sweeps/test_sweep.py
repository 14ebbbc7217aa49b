"""A sweep from the command line: what it runs, what it leaves, what it does when something is wrong."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from benchmarks.chaos import children, completed, differences, disturbed
from torch import nn

from conftest import LAYERGRAFT, SWEEP, TINY
from layergraft.cli.commands import main
from layergraft.store.records import read_record
from layergraft.sweeps.execution import devices


def keys(outputs):
    return sorted(path.name for path in (outputs / "runs").iterdir() if path.is_dir())


def test_every_run_once_with_its_controls(sweep):
    plan = json.loads((sweep / "sweeps" / "small" / "sweep.json").read_text())
    assert sorted(plan["runs"]) == keys(sweep)
    arms = [key.rsplit(".seed", 1)[0] for key in keys(sweep)]
    assert {arm: arms.count(arm) for arm in arms} == {
        "freeze.early.resnet18.trained": 2,
        "freeze.late.resnet18.trained": 2,
        "hybrid.early.resnet18.trained": 2,
        "hybrid.late.resnet18.trained": 2,
        "freeze.early.resnet18.random": 2,
        "freeze.late.resnet18.random": 2,
        "full.resnet18.none": 2,  # once a seed, not once a site
    }
    assert all(read_record(sweep / "runs" / key).status == "completed" for key in keys(sweep))


def test_donors_are_trained_once_and_shared(sweep):
    donors = [path.name for path in (sweep / "donors").iterdir() if path.is_dir()]
    assert len(donors) == 8  # 2 shapes x 2 seeds, trained and untrained
    used = [donor["key"] for key in keys(sweep) for donor in read_record(sweep / "runs" / key).donors]
    assert sorted(set(used)) == sorted(donors)


def test_results_do_not_depend_on_who_ran_them(sweep, tmp_path, command):
    one = next(key for key in keys(sweep) if key.startswith("hybrid.late") and ".seed1." in key)
    alone = ["strategy=hybrid", "site=late", "seed=1", "exec.threads=1", *TINY[:3], "optim.batch_size=25"]
    code, _, _ = command("train", *alone, f"exec.outputs={tmp_path}")
    assert code == 0 and keys(tmp_path) == [one]
    for name in ("curves.csv", "model.safetensors"):
        assert (tmp_path / "runs" / one / name).read_bytes() == (sweep / "runs" / one / name).read_bytes()


def test_again_runs_nothing(sweep, command):
    stamps = {key: (sweep / "runs" / key / "record.json").stat().st_mtime_ns for key in keys(sweep)}
    code, _, err = command("train", *SWEEP, f"exec.outputs={sweep}")
    assert code == 0 and "14 of 14 runs in the store already" in err
    assert {key: (sweep / "runs" / key / "record.json").stat().st_mtime_ns for key in keys(sweep)} == stamps


def test_what_is_lost_is_run_again(sweep, tmp_path, command):
    outputs = tmp_path / "outputs"
    shutil.copytree(sweep, outputs)
    lost = keys(outputs)[3]
    before = (outputs / "runs" / lost / "curves.csv").read_bytes()
    (outputs / "runs" / lost / "record.json").unlink()
    code, _, err = command("train", *SWEEP, f"exec.outputs={outputs}")
    assert code == 0 and "13 of 14 runs in the store already" in err and "14 of 14 runs completed" in err
    assert (outputs / "runs" / lost / "curves.csv").read_bytes() == before


@pytest.mark.parametrize(
    "bad, message",
    [
        ("site=early,layer3.9", "unknown site in resnet18: 'layer3.9'"),
        ("strategy=full,freez", "unknown strategy 'freez'; did you mean 'freeze'?"),
        ("exec.outputs=a,b", "exec cannot be swept over"),
        ("seed=range(0)", "seed=range(0) has no values, so there is nothing to run"),
        ("optim.lr=interval(0.1,1)", "an interval is to be searched: hydra/sweeper=optuna does"),
        ("hydra/launchr=ray", "did you mean 'hydra/launcher'?"),
        ("schedule.epochs=3,0", "schedule.epochs is 0"),
        ("donor.out_channels=4,5", "the donor does not fit conv1"),
    ],
)
def test_a_sweep_is_checked_whole_before_its_first_run(bad, message, tmp_path, command):
    code, _, err = command("train", "-m", bad, f"exec.outputs={tmp_path}/o")
    *before, line = err.splitlines()
    assert code == 2 and message in line and line.startswith("error: ") and len(before) <= 1  # "checking ..."
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_is_one_runs_failure(tmp_path, command):
    arguments = [
        "-m",
        "optim=sgd",
        "optim.lr=0.1,1e30",
        "donor=none",
        "strategy=full",
        "optim.batch_size=25",
        *TINY[:2],
    ]
    code, _, err = command("train", *arguments, f"exec.outputs={tmp_path}")
    assert code == 1
    assert "1 of 2 runs completed" in err and "  diverged     full.resnet18.none.seed0." in err
    (page,) = tmp_path.glob("sweeps/*/report.html")
    assert "1 run is not in the figures below" in page.read_text()


def test_a_sweep_of_which_nothing_is_left(tmp_path, command):
    arguments = [
        "-m",
        "optim=sgd",
        "optim.lr=1e30",
        "seed=0,1",
        "donor=none",
        "strategy=full",
        "optim.batch_size=25",
        *TINY[:2],
    ]
    code, _, err = command("train", *arguments, f"exec.outputs={tmp_path}")
    assert code == 1 and "0 of 2 runs completed" in err and err.count("diverged     full.resnet18.none.seed") == 2
    assert "Traceback" not in err and not list(tmp_path.glob("sweeps/*/report.html"))


def test_stock_launcher(tmp_path, command):
    arguments = ["-m", "hydra/launcher=basic", "seed=0,1", "donor=random", "strategy=freeze", *TINY[:2]]
    code, _, err = command("train", *arguments, "exec.sweep=basic", f"exec.outputs={tmp_path}")
    assert code == 0 and len(keys(tmp_path)) == 2 and (tmp_path / "sweeps" / "basic" / "report.html").exists()


def test_workers_by_cores_and_gpus(config, monkeypatch):
    monkeypatch.setattr("layergraft.sweeps.execution._cores", lambda: 4)
    assert devices(config("exec=cpu").exec, 9) == [""] * 4
    assert devices(config("exec=cpu").exec, 2) == [""] * 2
    assert devices(config("exec=cpu", "exec.workers=6").exec, 9) == [""] * 6
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices(config("exec.jobs_per_gpu=2").exec, 9) == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert devices(config().exec, 9) == ["3", "5"]
    assert devices(config("exec=cpu").exec, 2) == ["", ""]


@pytest.mark.slow
def test_interrupted_sweep_goes_on_where_it_was(sweep, tmp_path, command):
    outputs = tmp_path / "outputs"
    for made in ("donors", "networks"):
        shutil.copytree(sweep / made, outputs / made)
    program = [LAYERGRAFT, "train", *SWEEP, f"exec.outputs={outputs}", "schedule.epochs=16", "seed=0"]
    process = subprocess.Popen(
        program,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    before: set[Path] = set()
    while True:  # until one run has ended and another has just trained its first epoch of 16
        training = {path.parent for path in outputs.glob("runs/*/last.ckpt")}
        ended = {path.parent for path in outputs.glob("runs/*/record.json")}
        if ended and training - before - ended:
            break
        before = training
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C: the parent and its workers get it
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.splitlines()[-1].startswith("interrupted; the same command goes on")
    assert "Traceback" not in err
    statuses = [json.loads(path.read_text())["status"] for path in outputs.glob("runs/*/record.json")]
    # Where the interrupt lands is chance: between two runs, or in a place that swallows it and lets the run end. What
    # must hold is that it stops early, that no record is half-written, and that the rest is done the next time.
    # (tests/runs/test_run.py has the record of an interrupted run.)
    assert "completed" in statuses and len(statuses) < 7
    done = statuses.count("completed")
    code, _, err = command("train", *SWEEP, f"exec.outputs={outputs}", "schedule.epochs=16", "seed=0")
    assert code == 0 and f"{done} of 7 runs in the store already" in err and "7 of 7 runs completed" in err


@pytest.mark.slow
def test_a_key_of_some_donors_is_about_those(tmp_path, command):
    torch.save(nn.Conv2d(4, 4, 3, padding=1, bias=False).state_dict(), tmp_path / "my.pt")
    arguments = ["-m", "donor=trained,random,extracted", f"donor.path={tmp_path}/my.pt", "site=layer1.0.conv1", "donor.schedule.epochs=1", "donor.optim.lr=0.01", "strategy=freeze", "host=resnet8", "host.width=4",
                 "schedule.epochs=1", "optim.batch_size=25", "exec.device=cpu", "exec.sweep=mixed"]  # fmt: skip
    code, _, err = command("train", *arguments, f"exec.outputs={tmp_path}")
    assert code == 0 and "3 of 3 runs completed" in err
    donors = {
        r.axes["donor"]: r.config["donor"] for r in (read_record(tmp_path / "runs" / key) for key in keys(tmp_path))
    }
    assert donors["trained"]["schedule"]["epochs"] == 1 and "schedule" not in donors["random"]
    assert (
        donors["extracted"]["path"] == f"{tmp_path}/my.pt" and "path" not in donors["trained"]
    )  # which is the default
    for misspelt in ("donor.schedul.epochs=1", "donor.schedul.epochs=1,2"):
        code, _, err = command("train", *arguments, misspelt, f"exec.outputs={tmp_path}")
        assert code == 2 and "unknown key in donor: 'schedul'; did you mean 'schedule'?" in err
    neither = [a.replace("trained,random,extracted", "gabor,random") for a in arguments if "donor.path" not in a]
    code, _, err = command("train", *neither, f"exec.outputs={tmp_path}")
    assert code == 2 and "donor.schedule is a key of donor=" in err and "[in the run " in err and "donor=gabor " in err


def test_devices_are_not_shared_in_a_sweep(tmp_path, command):
    code, _, err = command("train", *SWEEP, f"exec.outputs={tmp_path}", "exec.devices=2")
    assert code == 2 and "exec.devices is of a single run; a sweep does a run on each device" in err


@pytest.mark.slow
def test_sources_are_swept_and_a_donor_without_one_runs_once(command, tmp_path):
    code, _, err = command("train", "-m", "donor=trained,random", "donor.data=digits_5_to_9,textures", "donor.data.train_size=40",
                           "strategy=freeze", "host=resnet8", *TINY, f"exec.outputs={tmp_path}", "exec.sweep=sources")  # fmt: skip
    assert code == 0 and "3 of 3 runs completed" in err
    table = pd.read_csv(tmp_path / "sweeps" / "sources" / "runs.csv")
    assert "donor.data.size" not in table  # what goes with a source's name is no axis of its own
    assert sorted(table["donor.data.name"]) == ["-", "digits_5_to_9", "textures"]
    seen = table[table.donor == "trained"]["similarity/fixed/frechet"]
    assert (
        len(seen) == 2
        and seen.nunique() == 2
        and table[table.donor == "random"]["similarity/fixed/frechet"].isna().all()
    )
    code, _, err = command("train", "donor=random", "donor.data=textures", *TINY, f"exec.outputs={tmp_path}")
    assert code == 2 and "donor.data: this donor learns from no data of its own" in err


BRIEF = ["-m", "data=digits_0_to_4", "site=early", "seed=range(4)", "donor=trained", "strategy=freeze,full", "host=resnet8", "host.width=4", "schedule.epochs=8",
         "donor.schedule.epochs=2", "optim.batch_size=25", "exec.device=cpu", "exec.sweep=brief"]  # fmt: skip


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    """The outputs folder of a sweep of 8 runs, undisturbed."""
    outputs = tmp_path_factory.mktemp("brief") / "outputs"
    main(["train", *BRIEF, f"exec.outputs={outputs}"])
    return outputs


@pytest.mark.slow  # a minute, most of it starts of processes
def test_four_processes_on_one_store_do_each_run_once(brief, tmp_path):
    program = [LAYERGRAFT, "train", *BRIEF, f"exec.outputs={tmp_path}", "exec.workers=1"]
    processes = [subprocess.Popen(program, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    seen: dict[str, set[int]] = {}
    while any(process.poll() is None for process in processes):
        for key, written in completed(tmp_path).items():
            seen.setdefault(key, set()).add(written)
        time.sleep(0.02)
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert all("8 of 8 runs completed" in err for err in errors)
    assert len(seen) == 8 and all(len(times) == 1 for times in seen.values())  # no record was written twice
    assert differences(brief, tmp_path) == {"lost": [], "more": [], "different": []}
    assert not list((tmp_path / "leases").iterdir()) and not list(tmp_path.glob("donors/.*"))  # nothing is left behind


@pytest.mark.slow  # a minute, most of it starts of processes
def test_a_short_chaos(brief, tmp_path):
    # benchmarks/chaos.py is the long one: 40 runs, 20 kills.
    def again():
        program = [LAYERGRAFT, "train", *BRIEF, f"exec.outputs={tmp_path}"]
        return subprocess.Popen(
            [*program, "exec.checkpoint_seconds=0"], stderr=subprocess.DEVNULL, start_new_session=True
        )

    count = disturbed(tmp_path, again, 5, random.Random(1), at_once=1, pause=8.0)
    assert count["done twice"] == 0 and count["workers killed"] + count["parents killed"] + count["Ctrl-C"] > 0
    assert differences(brief, tmp_path) == {"lost": [], "more": [], "different": []}


@pytest.mark.slow
def test_a_finished_sweep_is_not_planned_again_until_something_changes(brief, tmp_path, command):
    outputs = tmp_path / "outputs"
    shutil.copytree(brief, outputs)
    arguments = ["train", *BRIEF, f"exec.outputs={outputs}"]

    def torch_was_needed():
        code = "import sys; from layergraft.cli.commands import main; main(sys.argv[1:]); sys.exit(42 if 'torch' in sys.modules else 0)"
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode in (0, 42) and "8 of 8 runs in the store already" in done.stderr
        assert "report.html" in done.stderr
        return done.returncode == 42

    assert torch_was_needed()  # in another folder it is another sweep: its plan is made
    assert not torch_was_needed()
    (outputs / "runs" / keys(outputs)[0] / "record.json").unlink()
    code, _, err = command(*arguments)
    assert code == 0 and "7 of 8 runs in the store already" in err and "8 of 8 runs completed" in err
    assert not torch_was_needed()
    code, _, err = command(*arguments, "seed=0", "strategy=freeze")
    assert code == 0 and err.startswith("checking ") and "was a sweep of" in err


@pytest.mark.slow
def test_rerun_does_all_of_it_again_the_donors_too_and_once(brief, tmp_path, command):
    outputs = tmp_path / "outputs"
    shutil.copytree(brief, outputs)
    before = {
        path: path.stat().st_mtime_ns
        for path in [*outputs.glob("runs/*/record.json"), *outputs.glob("donors/*/donor.json")]
    }
    code, _, err = command("train", *BRIEF, f"exec.outputs={outputs}", "exec.rerun=true")
    assert code == 0 and "8 of 8 runs completed" in err and "already" not in err
    assert len(before) == 12 and all(path.stat().st_mtime_ns > stamp for path, stamp in before.items())
    assert differences(brief, outputs) == {"lost": [], "more": [], "different": []}
    assert not (outputs / "sweeps" / "brief" / "rerun").exists()  # it is concluded


@pytest.mark.slow
def test_a_rerun_that_was_interrupted_goes_on(brief, tmp_path, command, monkeypatch):
    outputs = tmp_path / "outputs"
    folder, again = outputs / "sweeps" / "brief", ["train", *BRIEF, f"exec.outputs={outputs}", "exec.rerun=true"]
    shutil.copytree(brief, outputs)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("layergraft.sweeps.execution.run", interrupted)
        assert command(*again)[0] == 130
    started = (folder / "rerun").stat().st_mtime
    for key in keys(outputs)[2:]:  # as if it had come so far
        os.utime(outputs / "runs" / key / "record.json", (started + 1e-3,) * 2)
    _, out, _ = command("status", str(folder))
    assert out.startswith(
        "done 6, running 0, failed 0, waiting 2 of 8 runs\n  nothing runs now; to go on: layergraft train"
    )
    code, _, err = command(*again)
    assert code == 0 and "6 of 8 runs in the store already" in err and "8 of 8 runs completed" in err
    assert not (folder / "rerun").exists()
    (folder / "rerun").touch()  # of a rerun of something else
    code, _, err = command(*again, "strategy=freeze", "seed=0,1")
    assert code == 0 and "already" not in err and "was a sweep of 6 other runs" in err


def test_status(brief, tmp_path, command):
    outputs = tmp_path / "outputs"
    shutil.copytree(brief, outputs)
    folder = outputs / "sweeps" / "brief"
    done, failed, interrupted, running, *_ = keys(outputs)
    code, out, _ = command("status", str(folder))
    assert (code, out) == (0, "done 8, running 0, failed 0, waiting 0 of 8 runs\n")
    for key, word in ((failed, "failed"), (interrupted, "interrupted")):
        path = outputs / "runs" / key / "record.json"
        path.write_text(path.read_text().replace('"completed"', f'"{word}"', 1))
    (outputs / "runs" / running / "record.json").unlink()
    (outputs / "leases" / f"{running}~1").write_text("")
    code, out, _ = command("status", str(folder))
    assert code == 0 and out.startswith("done 5, running 1, failed 1, waiting 1 of 8 runs")
    assert out.splitlines()[1:] == [f"  failed    {failed}"]
    for at, age in enumerate(range(60, 0, -12)):  # the last 5 ended 12 s apart
        path = outputs / "runs" / [done, *keys(outputs)[4:]][at] / "record.json"
        os.utime(path, (time.time() - age,) * 2)
    os.utime(folder / "sweep.json", (time.time() - 100,) * 2)
    os.utime(outputs / "runs" / failed / "record.json", (time.time() - 300,) * 2)
    os.utime(outputs / "runs" / interrupted / "record.json", (time.time() - 300,) * 2)
    code, out, _ = command("status", str(folder))
    assert re.search(r", (4\.9\d|5(\.0\d)?) runs a minute, about 2[4-5] s left", out), out
    os.utime(outputs / "leases" / f"{running}~1", (time.time() - 300,) * 2)  # nobody renews it: its owner is dead
    assert "running 0, failed 1, waiting 2" in command("status", str(folder))[1]
    (outputs / "donors" / ".x.lease~1").write_text("")
    assert "waiting 2 of 8 runs, 1 donor in the making" in command("status", str(folder))[1]
    for wrong, message in (
        ([str(outputs / "sweeps" / "breif")], f"did you mean '{folder}'?"),
        ([str(outputs)], str(folder)),
        ([], "status: the following arguments are required: DIR"),
        ([str(folder), "--wacth"], "unknown option of status '--wacth'; did you mean '--watch'?"),
    ):
        code, _, err = command("status", *wrong)
        assert code == 2 and message in err and err.count("\n") == 1


def test_interrupt_while_workers_are_prepared(tmp_path):
    program = [LAYERGRAFT, "train", *SWEEP, f"exec.outputs={tmp_path}"]
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=default)
    while not any(map(_is_forkserver, children(process.pid))):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    time.sleep(0.5)  # it is amid its imports
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert err.splitlines()[-1].startswith("interrupted; the same command goes on")


def _is_forkserver(pid):
    try:
        return b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:  # it has ended
        return False
