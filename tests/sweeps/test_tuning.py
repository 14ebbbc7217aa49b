"""Each arm tuned within itself: which runs that takes, what is kept of it, what is refused before anything runs."""

import contextlib
import io
import json
import shutil

import pytest

from layergraft.cli.commands import main
from layergraft.store.records import read_record
from layergraft.sweeps.tuning import at_edge, grid_of

ASKED = [
    "-m", "data=digits_0_to_4", "host=resnet8", "host.width=2", "schedule.epochs=2", "optim.batch_size=25", "exec.device=cpu",
    "exec.probe.epochs=[]", "exec.similarity.resamples=0", "donor=random", "strategy=freeze,full", "site=early", "seed=0,1",
    'hydra.sweeper.controls=[["donor=none","strategy=full"]]', "exec.sweep=tuned",
    "hydra.sweeper.tune.optim.lr=[1e-3,1e-2,1e-1]", "hydra.sweeper.tuning_seeds=[7,8]",
]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The outputs of a small tuned sweep, and what was said while it ran."""
    outputs, said = tmp_path_factory.mktemp("tuned"), io.StringIO()
    with contextlib.redirect_stderr(said):
        main(["train", *ASKED, f"exec.outputs={outputs}"])
    return outputs, said.getvalue()


def _read(outputs, name):
    return json.loads((outputs / "sweeps" / "tuned" / name).read_text())


def test_what_was_tried_by_halving(tuned):
    outputs, err = tuned
    found = _read(outputs, "tuning.json")
    assert found["tune"] == {"optim.lr": [0.001, 0.01, 0.1]} and found["seeds"] == [7, 8]
    names = ["donor=random strategy=freeze", "donor=random strategy=full", "donor=none strategy=full"]
    assert [arm["arm"] for arm in found["arms"]] == names
    steps = read_record(outputs / "runs" / _read(outputs, "sweep.json")["runs"][0]).steps_per_epoch
    for arm in found["arms"]:
        seeds = sorted(len(tried["scores"]) for tried in arm["tried"])
        assert seeds == [1, 2, 2] and arm["runs"] == 5  # three at seed 7, then two of them at seed 8
        best = max(arm["tried"], key=lambda tried: (len(tried["scores"]), _means(tried)))
        assert arm["chosen"] == best["values"]
        assert arm["images"] == 5 * 2 * steps * 25 and arm["seconds"] > 0
    assert "tuning optim.lr of 3 arms by val/acc on seeds 7, 8: 15 runs" in err


def _means(tried):
    acc, loss = zip(*tried["scores"].values(), strict=True)
    return sum(acc) / len(acc), -sum(loss) / len(loss)


def test_the_comparison_has_each_arms_own_value_and_none_of_the_tunings_seeds(tuned):
    outputs, _ = tuned
    plan, found = _read(outputs, "sweep.json"), _read(outputs, "tuning.json")
    chosen = {arm["config"]: arm["chosen"]["optim.lr"] for arm in found["arms"]}
    records = [read_record(outputs / "runs" / key) for key in plan["runs"]]
    assert len(records) == 6 and {record.axes["seed"] for record in records} == {0, 1}
    assert all(record.config["optim"]["lr"] == chosen[plan["tuned"][record.key]] for record in records)


def test_the_scores_are_the_runs_validation(tuned):
    outputs, _ = tuned
    every = [read_record(path) for path in (outputs / "runs").iterdir()]
    of_seed = {
        (r.axes["strategy"], r.axes["donor"], r.config["optim"]["lr"], str(r.axes["seed"])): r.metrics for r in every
    }
    (arm,) = [arm for arm in _read(outputs, "tuning.json")["arms"] if arm["arm"] == "donor=random strategy=freeze"]
    for tried in arm["tried"]:
        for seed, (acc, loss) in tried["scores"].items():
            metrics = of_seed["freeze", "random", tried["values"]["optim.lr"], seed]
            assert (acc, loss) == (metrics["val/acc"], metrics["val/loss"])


def test_the_report_compares_the_tuned_arms(tuned):
    outputs, _ = tuned
    report = (outputs / "sweeps" / "tuned" / "report.md").read_text()
    assert "each arm has the optim.lr that validated best for it on seeds 7, 8" in report
    assert "optim.lr=" not in report.split("## 3.")[0]  # the rate is no setting
    assert (outputs / "sweeps" / "tuned" / "figures" / "tuning.svg").is_file()
    assert "| freeze, random | optim.lr = " in report


def test_a_file_of_before_is_taken_and_only_what_it_lacks_is_tuned(tuned, tmp_path, command):
    outputs, _ = tuned
    known = outputs / "sweeps" / "tuned" / "tuning.json"
    more = [f"hydra.sweeper.tuned={known}", "strategy=freeze,full,low_lr"]
    code, _, err = command("train", *ASKED, *more, f"exec.outputs={tmp_path}")
    assert code == 0, err
    assert f"3 of 4 arms take the optim.lr that {known} has" in err
    assert "tuning optim.lr of 1 arm by val/acc on seeds 7, 8: 5 runs" in err
    found = json.loads((tmp_path / "sweeps" / "tuned" / "tuning.json").read_text())
    before = {arm["config"]: arm for arm in _read(outputs, "tuning.json")["arms"]}
    assert [arm["arm"] for arm in found["arms"] if arm["config"] not in before] == ["donor=random strategy=low_lr"]
    assert all(arm == before[arm["config"]] for arm in found["arms"] if arm["config"] in before)


@pytest.mark.parametrize(
    "bad, message",
    [
        (
            "hydra.sweeper.tune.optim.lr=[1e-3]",
            "hydra.sweeper.tune.optim.lr is [0.001]; it is a list of two values or more",
        ),
        ("hydra.sweeper.tune.optim.lr=[1e-3,1e-3]", "has a value twice"),
        ("hydra.sweeper.tune.optim.rate=[1e-3,1e-2]", "did you mean"),
        (
            "hydra.sweeper.tune.strategy=[freeze,full]",
            "arms are told apart by strategy; sweep over it: strategy=freeze,full",
        ),
        ("hydra.sweeper.tune.seed=[1,2]", "seed is nothing to tune"),
        ("hydra.sweeper.tuning_seeds=[1,9]", "seed 1 is both the comparison's and the tuning's"),
        ("optim.lr=0.1,0.2", "optim.lr is both swept over and tuned"),
        ("hydra.sweeper.tuned=/dev/null", "file not found"),
        ("hydra.sweeper.tuned=nowhere.json", "hydra.sweeper.tuned: file not found: nowhere.json"),
        ("hydra.sweeper.tune.optim.lr=[1e-3,-1]", "optim.lr is -1"),
    ],
)
def test_what_cannot_be_tuned_is_told_before_anything_runs(bad, message, tmp_path, command):
    code, _, err = command("train", *ASKED, bad, f"exec.outputs={tmp_path}/o")
    assert code == 2 and message in err.splitlines()[-1]
    assert not (tmp_path / "o" / "runs").exists()


def test_an_arm_whose_every_value_fails_is_named(tmp_path, command):
    code, _, err = command(
        "train", *ASKED, "optim=sgd", "hydra.sweeper.tune.optim.lr=[1e30,1e35]", f"exec.outputs={tmp_path}"
    )
    assert code != 0 and "no value of optim.lr was completed at every seed for donor=random strategy=freeze" in err


def test_a_report_of_a_sweep_that_is_being_tuned_is_refused(tuned, tmp_path, command):
    outputs, _ = tuned
    folder = tmp_path / "sweeps" / "tuned"
    shutil.copytree(outputs / "sweeps" / "tuned", folder)
    plan = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(plan | {"tuned": {}}))
    code, _, err = command("report", str(folder))
    assert code == 2 and "its arms are still being tuned" in err


def test_a_tuned_and_an_untuned_sweep_are_reported_apart(tuned, tmp_path, command):
    outputs, _ = tuned
    plan = _read(outputs, "sweep.json")
    others = sorted(path.name for path in (outputs / "runs").iterdir() if path.name not in plan["runs"])
    folder = outputs / "sweeps" / "untuned"
    folder.mkdir()
    untuned = {name: value for name, value in plan.items() if name != "tuned"} | {"runs": others}
    (folder / "sweep.json").write_text(json.dumps(untuned))
    both = [str(outputs / "sweeps" / "tuned"), str(folder)]
    code, _, err = command("report", *both, "--to", str(tmp_path))
    assert code == 2 and "are tuned in optim.lr in some of these and not in others" in err


def test_nested_and_dotted_keys_are_the_same():
    assert grid_of({"optim": {"lr": [1, 2]}}) == grid_of({"optim.lr": [1, 2]}) == {"optim.lr": [1, 2]}
    assert grid_of({"optim.lr": [1, 2], "optim": {"lr": [3, 4]}}) == {"optim.lr": [3, 4]}  # given later
    assert grid_of(None) == grid_of({"optim.lr": None}) == {}


def test_the_edge_is_of_numbers():
    grid = {"optim.lr": [1e-3, 1e-2, 1e-1], "surgery.calibrate": ["none", "moments"]}
    assert at_edge({"optim.lr": 1e-3, "surgery.calibrate": "none"}, grid) == ["optim.lr"]
    assert at_edge({"optim.lr": 1e-2}, grid) == []


def test_quickstart_comes_with_the_rates_of_all_its_arms(tmp_path, command, monkeypatch):
    from hydra.core.plugins import Plugins

    Plugins.instance()  # imports them anew, once
    from layergraft.sweeps import grid, launchers

    monkeypatch.setattr(launchers.LocalLauncher, "launch", lambda self, jobs, **_: [])
    monkeypatch.setattr(grid, "finish", lambda *_: None)
    code, _, err = command("train", "-m", "+experiment=quickstart", "seed=0", f"exec.outputs={tmp_path}")
    assert code == 0, err
    assert "38 of 38 arms take the optim.lr that experiment/quickstart.tuned.json has" in err
    assert "by val/acc on seeds" not in err  # none is tuned anew


@pytest.mark.slow
def test_a_key_of_the_host_holds_for_a_control_with_another_host(tmp_path, command, monkeypatch):
    from hydra.core.plugins import Plugins

    Plugins.instance()  # imports them anew, once
    from layergraft.sweeps import grid, launchers

    planned = []
    monkeypatch.setattr(launchers.LocalLauncher, "launch", lambda self, jobs, **_: planned.extend(self.planned) or [])
    monkeypatch.setattr(grid, "finish", lambda *_: None)
    asked = ["host.width=4", "hydra.sweeper.tune=null", "seed=0"]
    code, _, err = command("train", "-m", "+experiment=quickstart", *asked, f"exec.outputs={tmp_path}")
    assert code == 0, err
    assert {plan.config.strategy.name for plan in planned} > {"freeze_thaw", "freeze_early"}
    assert {plan.config.host.width for plan in planned} == {4}
