"""Every experiment in conf/, at its smoke size: it runs, and its report has each contrast that it names."""

import json
import re

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir

from conftest import write_public_files
from layergraft.cli.help import groups, line_of
from layergraft.config.compose import conf_dir, to_config
from layergraft.report.contrasts import design, named
from layergraft.report.findings import find
from layergraft.report.table import read, tidy
from layergraft.runs.train import planned_record

# Values that no contrast is about, left out of the largest.
FEWER = {
    "quickstart": ["strategy=freeze,hybrid,full", "host=resnet20", "exec.similarity.resamples=0"],
    "depth_width": ["host.width=4,16"],
    "shock": ["schedule.epochs=1"],
    "location": ["site=conv1,layer4.1.conv1"],
    "similarity": ["exec.similarity.resamples=0", "donor.data.corrupt.blocks=null,4,1"],
    "strategies": ["strategy=freeze,hybrid,freeze_thaw,freeze_early,thaw,full,lp_ft", "site=layer2.1.conv1"],
    "yosinski": ["site=[conv1],[conv1,layer1,layer2,layer3]"],
    "surgical": ["strategy.groups.tuned=[stem,stage1],[stage4]"],
    "depth": ["host=resnet20,resnet32,resnet56"],
}
UNTUNED = "hydra.sweeper.tune=null"  # tests/sweeps/test_tuning.py has what tuning does
# Experiments on files that are not in the project, which `stand_ins` writes: what makes them small.
SMALL = [
    *(
        "optim.batch_size=25",
        "schedule.epochs=1",
        "donor.data.train_size=100",
        "donor.schedule.epochs=1",
        "host.width=4",
    ),
    *("exec.probe.images=32", "exec.similarity.resamples=0", "seed=range(2)"),
]
ON_FILES = {"depth": [*SMALL, "data.train_size=50"], "medical": SMALL}
NAMES = list(groups([conf_dir()])["experiment"])


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A folder with what `depth` and `medical` look for in exec.data: small files of the right names and shapes."""
    folder = tmp_path_factory.mktemp("files")
    write_public_files(folder, width=4, train=200, val=50, test=300)
    return folder


@pytest.fixture
def made_small(stand_ins):
    """Experiment -> the overrides that make it a matter of seconds; `size` of those that have sizes."""

    def overrides(name, size):
        if name in ON_FILES:
            return [*ON_FILES[name], f"exec.data={stand_ins}", UNTUNED]
        return [f"size={size}", UNTUNED]

    return overrides


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """One store for all: they share donors, and hosts without one."""
    return tmp_path_factory.mktemp("experiments")


# By `make test-slow`: one is planned at once below, and the pages' commands run a sweep.
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_small_and_has_what_it_asks(name, outputs, command, made_small, monkeypatch):
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    assert len(line_of(conf_dir() / "experiment" / f"{name}.yaml")) > 20
    assert re.search(rf"^# layergraft train -m \+experiment={name}\b", text, re.MULTILINE)
    named = f"{name}-smoke"
    if name != "quickstart":  # a page takes as long as five of these runs; what it is made of is found below
        monkeypatch.setattr("layergraft.report.write", lambda folders: folders[0] / "report.html")
    code, _, err = command(
        "train",
        "-m",
        f"+experiment={name}",
        *made_small(name, "smoke"),
        "hydra/launcher=basic",
        f"exec.sweep={named}",
        f"exec.outputs={outputs}",
        *FEWER.get(name, []),
    )
    assert code == 0, err
    found = find(read([outputs / "sweeps" / named]))
    contrasts = yaml.safe_load(text)["hydra"]["sweeper"]["contrasts"]
    assert [c.name for c in found.contrasts] == list(contrasts) and found.lacking == []
    assert all(c.difference.n == 2 and not c.unpaired for c in found.contrasts)
    assert (outputs / "sweeps" / named / "report.html").exists() == (name == "quickstart")
    plan = json.loads((outputs / "sweeps" / named / "sweep.json").read_text())
    assert set(plan["contrasts"]) == set(contrasts)


# The rest by `make test-slow`.
@pytest.mark.parametrize("name", [n if n in ("shock",) else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_every_experiment_can_be_planned_small_and_its_runs_have_what_it_asks(
    name, tmp_path, command, made_small, monkeypatch
):
    from hydra.core.plugins import Plugins

    Plugins.instance()  # imports them anew, once
    from layergraft.sweeps import grid, launchers

    planned = []
    monkeypatch.setattr(launchers.LocalLauncher, "launch", lambda self, jobs, **_: planned.extend(self.planned) or [])
    monkeypatch.setattr(grid, "finish", lambda *_: None)
    of_size = made_small(name, "digits")
    code, _, err = command("train", "-m", f"+experiment={name}", *of_size, f"exec.outputs={tmp_path}", "seed=0,1")
    assert code == 0 and planned, err
    rng = np.random.default_rng(0)
    records = []
    for plan in planned:  # as if they were done: which metrics a run has depends on its graft and head alone
        record = planned_record(plan, "completed")
        has_shock = plan.grafts and plan.keeps_head
        there = [metric for metric in plan.metrics if has_shock or not metric.startswith("shock/")]
        record.metrics, record.units = {m: rng.normal() for m in there}, {m: plan.metrics[m].unit for m in there}
        records.append((record, tmp_path))
    (sweep,) = (tmp_path / "sweeps").glob("*/sweep.json")
    specs = json.loads(sweep.read_text())["contrasts"]
    found, lacking = named(design(tidy(records)), specs)
    assert [c.name for c in found] == list(specs) and lacking == []
    assert all(c.difference is not None and c.difference.n == 2 and not c.unpaired for c in found)


@pytest.mark.parametrize("size", groups([conf_dir()])["size"])
def test_every_size_composes(size):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = to_config(compose("config", overrides=["+experiment=location", f"size={size}"]))
    assert config.host.name == "resnet18" and config.schedule.epochs > 1


def test_a_misspelt_contrast_is_refused_before_any_training(tmp_path, command):
    given = "+hydra.sweeper.contrasts.c={of: ['+strategy=freeze', '-donor=nome']}"
    code, _, err = command("train", "-m", "+experiment=location", "size=smoke", given, f"exec.outputs={tmp_path}")
    assert code == 2 and err.splitlines()[-1].startswith(
        "error: contrast c: unknown donor among these runs: 'nome'; did you mean"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments, name",
    [
        (["+experiment=location"], r"location"),
        (["+experiment=location", "exec.workers=1"], r"location"),
        (["+experiment=location", "size=smoke"], r"location-smoke"),
        (["+experiment=location", "size=smoke", "seed=0,1"], r"location-smoke-[0-9a-f]{12}"),
        (["seed=0,1"], r"sweep-[0-9a-f]{12}"),
        (["+experiment=location", "exec.sweep=mine"], r"mine"),
        (["+experiment=mine/location"], r"mine-location"),
    ],
)
def test_a_sweeps_folder_says_what_it_is(arguments, name):
    from hydra.core.plugins import Plugins

    Plugins.instance()
    from hydra_plugins.layergraft.sweeper import LayergraftSweeper

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        sweeper = LayergraftSweeper()
        sweeper.config = compose(
            "config", overrides=[a for a in arguments if not a.startswith(("seed", "+experiment=mine"))]
        )
    assert re.fullmatch(name, sweeper.folder(arguments).name)
