"""A search with Optuna: on the same store, pruned, and it goes on where it was."""

import csv
from dataclasses import replace

import optuna
import pytest
from hydra.core.plugins import Plugins

from conftest import TINY
from layergraft.config.schema import Precision
from layergraft.store.records import read_record

BASE = ["-m", "hydra/sweeper=optuna", "strategy=freeze,full", "optim.lr=tag(log,interval(1e-4,1e-1))", "donor=random",
        "host=resnet8", *TINY[:1], "optim.batch_size=25", "exec.device=cpu", "exec.sweep=search"]  # fmt: skip


def rows(outputs):
    return list(csv.DictReader((outputs / "sweeps" / "search" / "trials.csv").read_text().splitlines()))


def test_a_search_goes_on_and_its_runs_are_in_the_store(tmp_path, command):
    arguments = [*BASE, "schedule.epochs=2", f"exec.outputs={tmp_path}", "hydra.sweeper.pruner=none"]
    code, _, err = command("train", *arguments, "hydra.sweeper.num_trials=4")
    assert code == 0 and "4 trials completed, 0 pruned" in err
    first = rows(tmp_path)
    values = [float(row["val/acc"]) for row in first]
    assert values == sorted(values, reverse=True) and {row["strategy"] for row in first} <= {"freeze", "full"}
    for row in first:
        record = read_record(tmp_path / "runs" / row["key"])
        assert record.metrics["val/acc"] == float(row["val/acc"])
        assert record.config["optim"]["lr"] == float(row["optim.lr"]) and 1e-4 <= float(row["optim.lr"]) <= 1e-1
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/record.json")}
    code, _, err = command("train", *arguments, "hydra.sweeper.num_trials=6")
    assert code == 0 and "6 trials completed" in err
    assert {row["key"] for row in first} < {row["key"] for row in rows(tmp_path)}  # nothing is proposed twice
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())  # none was run again


@pytest.mark.slow
def test_a_bad_trial_is_pruned_and_a_sweep_finishes_its_run(tmp_path, command):
    # After 5 trials the median prunes what is worse: rates at which nothing is learnt.
    search = [*BASE[:2], "optim.lr=tag(log,interval(1e-7,1e-2))", "strategy=full", *BASE[4:], "schedule.epochs=8"]
    study = [
        "hydra.sweeper.num_trials=16",
        "hydra.sweeper.sampler=random",
        "exec.workers=1",
        "exec.checkpoint_seconds=0",
    ]
    code, _, err = command("train", *search, *study, f"exec.outputs={tmp_path}")
    pruned = [row for row in rows(tmp_path) if row["status"] == "pruned"]
    assert code == 0 and pruned and f"{16 - len(pruned)} trials completed, {len(pruned)} pruned" in err
    record = read_record(tmp_path / "runs" / pruned[0]["key"])
    assert record.status == "pruned" and record.error.startswith("after epoch ")
    lr = pruned[0]["optim.lr"]
    sweep = [*search[:1], f"optim.lr={lr}", "seed=0,1", *search[3:-2], "exec.sweep=whole", "schedule.epochs=8"]
    code, _, err = command("train", *sweep, f"exec.outputs={tmp_path}")
    whole = read_record(tmp_path / "runs" / pruned[0]["key"])
    assert code == 0 and whole.status == "completed" and whole.resumed


def test_what_was_running_when_a_search_was_killed_is_run_again(tmp_path, command):
    arguments = [*BASE, "schedule.epochs=1", f"exec.outputs={tmp_path}", "hydra.sweeper.pruner=none"]
    assert command("train", *arguments, "hydra.sweeper.num_trials=2")[0] == 0
    file = tmp_path / "sweeps" / "search" / "study.log"
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    study = optuna.load_study(study_name="search", storage=storage)
    distributions = study.trials[0].distributions
    left = study.ask(distributions)  # and then the process is gone
    assert command("train", *arguments, "hydra.sweeper.num_trials=3")[0] == 0
    assert str(left.params["optim.lr"]) in {row["optim.lr"] for row in rows(tmp_path)} and len(rows(tmp_path)) == 3


def test_a_search_of_which_all_fails_ends_and_another_search_is_refused_its_folder(tmp_path, command):
    diverge = [*BASE[:2], "strategy=freeze,full", "optim=sgd", "optim.lr=1e30", *BASE[4:], "schedule.epochs=1"]
    code, _, err = command("train", *diverge, "hydra.sweeper.num_trials=3", f"exec.outputs={tmp_path}")
    assert code == 1 and err.count(" diverged, ") == 3 and "0 trials completed" in err
    code, _, err = command("train", *diverge, "strategy=freeze,low_lr", f"exec.outputs={tmp_path}")
    assert code == 2 and "has a search of another strategy; exec.sweep=NAME starts one of its own" in err


def test_a_trial_without_the_metric_has_failed(tmp_path, command):
    never = ["exec.probe.thresholds=[100]", "hydra.sweeper.metric=steps_to/100"]
    search = [*BASE, "schedule.epochs=1", "hydra.sweeper.num_trials=1", f"exec.outputs={tmp_path}"]
    code, _, err = command("train", *search, *never)
    assert code == 1 and "steps_to/100 was never reached" in err and "0 trials completed" in err


def test_any_metric_of_validation_is_searched_in_its_own_direction(tmp_path, command):
    search = [*BASE, "schedule.epochs=1", "hydra.sweeper.num_trials=3", "hydra.sweeper.metric=val/ece"]
    code, _, err = command("train", *search, f"exec.outputs={tmp_path}")
    values = [float(row["val/ece"]) for row in rows(tmp_path)]
    assert code == 0 and "3 trials completed" in err and values == sorted(values)  # the lowest is the best


def test_a_search_keeps_its_metric_unless_there_is_none_of_that_name(tmp_path, command):
    search = [*BASE, "schedule.epochs=1", "hydra.sweeper.num_trials=1", f"exec.outputs={tmp_path}"]
    code, _, err = command("train", *search, "hydra.sweeper.metric=val/accu")
    assert code == 2 and "unknown hydra.sweeper.metric 'val/accu'; did you mean" in err
    assert command("train", *search)[0] == 0
    code, _, err = command("train", *search, "hydra.sweeper.metric=val/aulc")
    assert code == 2 and "has a search of another metric; exec.sweep=NAME starts one of its own" in err


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["seed=0,1"], "seed is nothing to search over"),
        (["hydra.sweeper.metric=test/acc"], "to choose by the test split makes its figures worthless"),
        (["hydra.sweeper.sampler=tpee"], "unknown hydra.sweeper.sampler 'tpee'; did you mean 'tpe'?"),
        (["hydra.sweeper.pruner=medan"], "unknown hydra.sweeper.pruner 'medan'; did you mean 'median'?"),
        (["hydra.sweeper.direction=up"], "unknown hydra.sweeper.direction 'up'"),
        (["hydra.sweeper.metric=val/mae"], "unknown hydra.sweeper.metric 'val/mae'; did you mean 'val/"),
        (["hydra.sweeper.metric=drift"], "neither more nor less of drift is better: give hydra.sweeper.direction"),
        (["hydra.sweeper.num_trials=0"], "hydra.sweeper.num_trials is 0"),
        (["optim.weight_decay=interval(1,0)"], "an interval goes from low to high"),
        (["optim.weight_decay=tag(log,interval(0.0,1.0))"], "on a log scale an interval starts above 0"),
        (["optim.weight_decay=tag(lg,interval(0.1,1.0))"], "'lg' means nothing here; tag(log,interval(A,B))"),
        (["optim.weight_decay=range(0)"], "optim.weight_decay=range(0) has no values"),
        (["exec.workers=1,2"], "exec cannot be swept over"),
        (["hydra/launcher=basic"], "searches with hydra/launcher=layergraft or ray, not with basic"),
        (["hydra/launcher=slurm"], "searches with hydra/launcher=layergraft or ray, not with slurm"),
        (["optim.lrr=interval(0.1,1.0)"], "unknown key in optim: 'lrr'; did you mean 'lr'?"),
    ],
)
def test_bad_searches(overrides, message, tmp_path, command):
    code, _, err = command("train", *BASE, "hydra.sweeper.num_trials=1", *overrides, f"exec.outputs={tmp_path}")
    *_, line = err.splitlines()
    assert code == 2 and line.startswith("error: ") and message in line


def test_trials_are_planned_as_the_launchers_machines_will_do_them(tmp_path, command, monkeypatch):
    Plugins.instance()  # executes the plugins' modules anew where they were imported before, once
    from layergraft.sweeps.launchers import LocalLauncher

    there = lambda self, config: replace(config, precision=Precision.bf16_mixed)  # noqa: E731  a GPU, from a head node
    monkeypatch.setattr(LocalLauncher, "resolved", there)
    search = [*BASE, "schedule.epochs=1", "hydra.sweeper.num_trials=1", f"exec.outputs={tmp_path}"]
    assert command("train", *search)[0] == 0
    record = read_record(tmp_path / "runs" / rows(tmp_path)[0]["key"])
    assert record.status == "completed" and record.config["precision"] == "bf16_mixed"


def test_nothing_to_search_over(tmp_path, command):
    code, _, err = command("train", "-m", "hydra/sweeper=optuna", "strategy=freeze", f"exec.outputs={tmp_path}")
    assert code == 2 and "error: there is nothing to search over" in err
