"""A folder of choices from a stranger, given by `--config-dir`: it says what a run is, and runs nothing, starts nothing and
writes nowhere else."""

import json

import pytest
import yaml

GLOBAL = "# @package _global_\n"
ACT = {"_target_": "os.mkdir", "path": "ran"}
LOGGING = {"version": 1, "handlers": {"x": {"()": "os.mkdir", "path": "ran"}}, "root": {"handlers": ["x"]}}
FILE = {
    "version": 1,
    "handlers": {"x": {"class": "logging.FileHandler", "filename": "ran"}},
    "root": {"handlers": ["x"]},
}


def experiment(*defaults, **keys):
    return {"experiment/x.yaml": GLOBAL + yaml.safe_dump({"defaults": [*defaults, "_self_"], **keys})}


# Files of the folder -> what is said of them.
REFUSED = {
    "callbacks": (experiment(hydra={"callbacks": {"x": ACT}}), "hydra.callbacks is"),
    "callbacks by a choice": (
        experiment({"/strategy@hydra.callbacks.x": "y"}) | {"strategy/y.yaml": yaml.safe_dump(ACT)},
        "hydra.callbacks",
    ),
    "launcher's class": (experiment(hydra={"launcher": {"_target_": "os.mkdir"}}), "hydra.launcher is no installed launcher: os.mkdir"),
    "sweeper's class": (experiment(hydra={"sweeper": {"_target_": "os.mkdir"}}), "hydra.sweeper is no installed sweeper: os.mkdir"),
    "a sweeper as launcher": (
        experiment(hydra={"launcher": {"_target_": "hydra_plugins.layergraft.sweeper.LayergraftSweeper"}}),
        "hydra.launcher is no installed launcher",
    ),
    "a value of the sweeper": (
        experiment(hydra={"sweeper": {"params": {"seed": ACT}}}), "hydra.sweeper has a value with the key _target_"
    ),
    "a value by way of another key": (
        experiment(optim={"options": ACT}, hydra={"sweeper": {"params": {"seed": "${optim.options}"}}}),
        "hydra.sweeper has a value with the key _target_",
    ),
    "logging by a call": (experiment(hydra={"job_logging": LOGGING}), "hydra.job_logging is"),
    "logging to a file": (experiment(hydra={"hydra_logging": FILE}), "hydra.hydra_logging is"),
    "environment": (experiment(hydra={"job": {"env_set": {"LD_PRELOAD": "x.so"}}}), "hydra.job.env_set is"),
    "folder of a run": (experiment(hydra={"run": {"dir": "ran"}}), "hydra.run.dir is ran"),
    "folder of a sweep": (experiment(hydra={"sweep": {"dir": "ran"}}), "hydra.sweep.dir is ran"),
    "files of a run": (experiment(hydra={"output_subdir": "ran"}), "hydra.output_subdir is ran"),
    "working folder": (experiment(hydra={"job": {"chdir": True}}), "hydra.job.chdir is True"),
    "search path": (experiment(hydra={"searchpath": ["pkg://this"]}), "hydra.searchpath"),
    "a tag that calls": ({"experiment/x.yaml": GLOBAL + "seed: !!python/object/apply:os.mkdir [ran]\n"}, "x.yaml, line 2: could not determine a constructor"),
    "a tag that names": ({"experiment/x.yaml": GLOBAL + "seed: !!python/name:os.mkdir\n"}, "x.yaml, line 2: could not determine a constructor"),
    "an unknown resolver": (experiment(optim={"name": "${run:ran}"}), "Unsupported interpolation type run"),
    "outputs up": (experiment(exec={"outputs": "../ran"}), "exec.outputs is ../ran, by a config"),
    "outputs at": (experiment(exec={"outputs": "/ran"}), "exec.outputs is /ran, by a config"),
    "downloads": (experiment(exec={"data": "../ran"}), "exec.data is ../ran, by a config"),
    "their data set": (
        experiment({"override /data": "y"}) | {"data/y.yaml": "defaults: [/schema/data@_here_: folder]\ncache: ../ran\npath: .\n"},
        "data.cache is ../ran, by a config",
    ),
    "their download": (
        experiment({"override /data": "y"}) | {"data/y.yaml": "defaults: [food101]\npath: ../ran\n"},
        "data.path is ../ran, by a config",
    ),
    "a sweep's name": (experiment(exec={"sweep": "../../ran"}), "exec.sweep is '../../ran'"),
    "a name that a terminal obeys": (experiment(strategy={"name": "ran\x1b[31m"}), "strategy.name has a character that cannot be shown"),
    "a group that one obeys": (experiment(strategy={"groups": {"\x1b[31m": [".*"]}}), "strategy.groups has a character that cannot be shown"),
    "a root config": ({"config.yaml": "hydra: {run: {dir: ran}}\n", "experiment/x.yaml": GLOBAL + "foo: 1\n"}, "unknown key 'foo'"),
}  # fmt: skip


@pytest.fixture
def strangers(tmp_path, asked):
    """Function: files of the folder, more arguments -> exit code and error of a command in a folder beside it."""

    def run(files, *arguments, what="train"):
        for name, text in files.items():
            (tmp_path / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "theirs" / name).write_text(text)
        options_last = sorted([*arguments, "--config-dir=theirs"], key=lambda argument: argument.startswith("-"))
        return asked(*options_last, what=what)

    return run


@pytest.mark.parametrize("many", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_line(what, many, strangers, tmp_path):
    files, said = REFUSED[what]
    code, err = strangers(files, "+experiment=x", *many)
    assert code == 2 and said in err
    assert not list(tmp_path.rglob("ran")) and not (tmp_path.parent / "ran").exists()
    assert not list(tmp_path.glob("outputs/runs/*"))


@pytest.mark.parametrize(
    "keys", [{"setup": ["touch ran"]}, {"partition": "theirs"}, {"additional_parameters": {"wrap": "touch ran"}}]
)
def test_what_jobs_are_started_is_for_the_command_line_to_say(keys, strangers):
    config = experiment(hydra={"launcher": keys})
    code, err = strangers(config, "+experiment=x", "hydra/launcher=slurm", "-m", "seed=0,1")
    assert code == 2 and "hydra.launcher is set by a config" in err
    code, err = strangers(
        experiment(hydra={"launcher": {"address": "1.2.3.4:5"}}), "+experiment=x", "hydra/launcher=ray"
    )
    assert code == 2 and "hydra.launcher is set by a config" in err


@pytest.mark.parametrize("group", ["launcher", "sweeper", "job_logging", "hydra_logging", "callbacks"])
def test_an_experiment_chooses_nothing_of_hydras(group, strangers, tmp_path):
    files = experiment({f"override /hydra/{group}": "y"}) | {f"hydra/{group}/y.yaml": yaml.safe_dump(ACT | {"x": ACT})}
    strangers(files, "+experiment=x", what="plan")
    assert not list(tmp_path.rglob("ran"))


def test_what_was_not_named_does_not_count(strangers):
    files, _ = REFUSED["callbacks"]
    code, _ = strangers(files, what="plan")
    assert code == 0


def test_a_config_cannot_ask_for_a_sweep(strangers, tmp_path):
    more = {"mode": "MULTIRUN", "sweeper": {"params": {"seed": "0,1"}}}
    assert strangers(experiment(hydra=more), "+experiment=x", what="plan")[0] == 0
    assert not (tmp_path / "outputs" / "sweeps").exists()


def test_names_are_single_folders_and_no_markup(strangers, tmp_path, command):
    name = "../../ran</script><script>alert(1)</script><img src=x>"
    strategy = {"name": name, "groups": {name: [".*"]}, "phases": {"a": {"epoch": 0, "train": {name: 1.0}}}}
    code, err = strangers({"strategy/y.yaml": yaml.safe_dump(strategy)}, "strategy=y", "data.train_size=20")
    (record,) = (tmp_path / "outputs" / "runs").glob("*/record.json")
    assert code == 0 and json.loads(record.read_text())["status"] == "completed" and "ran" in record.parent.name
    code, out, err = command("report", "outputs/runs")
    page = (tmp_path / out.strip()).read_text()
    assert code == 0 and "alert(1)" in page and "<script>alert" not in page and "<img src=x" not in page


LAUNCHER = {"hydra/launcher/cluster.yaml": "defaults: [slurm]\njobs: 8\nsetup: [module load cuda]\n"}


@pytest.mark.parametrize("chosen", [["hydra/launcher=cluster"], ["hydra/launcher=slurm", "hydra.launcher.jobs=2"],
                                    ["hydra/launcher=ray"], ["hydra/sweeper=optuna"], ["hydra/sweeper=advise"]])  # fmt: skip
def test_what_the_command_line_chooses_is_done(chosen, strangers):
    code, err = strangers(LAUNCHER | experiment(seed=3), "+experiment=x", *chosen, "--cfg=hydra")
    assert code == 0, err


def test_outputs_that_the_command_line_names(strangers, tmp_path):
    config = experiment(exec={"outputs": "/nowhere"})
    assert strangers(config, "+experiment=x", f"exec.outputs={tmp_path}/outputs", what="plan")[0] == 0


@pytest.mark.parametrize("option", ["--config-path=theirs", "--config-name=x", "--experimental-rerun=theirs/config.pickle",
                                    "-cp=theirs", "hydra.searchpath=[pkg://this]", "+hydra.mode=MULTIRUN"])  # fmt: skip
def test_other_ways_to_a_config(option, strangers):
    assert strangers({"x.yaml": "seed: 1\n"}, option)[0] == 2
