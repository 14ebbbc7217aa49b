"""Every experiment in conf/, at its smoke size: it runs, and its report has each contrast that it names."""

import json
import re

import pytest
import yaml
from hydra import compose, initialize_config_dir

from layergraft.cli.help import groups, line_of
from layergraft.config.compose import conf_dir, to_config
from layergraft.report.findings import find
from layergraft.report.table import read

# Values that no contrast is about, left out of the largest.
FEWER = {
    "quickstart": ["strategy=freeze,hybrid,full", "site=early,late", "host=resnet20"],
    "depth_width": ["strategy=freeze", "host.width=4,16"],
    "yosinski": ["site=[conv1],[conv1,layer1,layer2,layer3]"],
    "surgical": ["strategy.groups.tuned=[layer1],[layer4]"],
}
NAMES = list(groups([conf_dir()])["experiment"])


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """One store for all: they share donors, and hosts without one."""
    return tmp_path_factory.mktemp("experiments")


# The rest by `make test-slow`: every one of them is planned below.
@pytest.mark.parametrize("name", [n if n == "quickstart" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_runs_small_and_has_what_it_asks(name, outputs, command, monkeypatch):
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
        "size=smoke",
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


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_can_be_planned_on_the_digits(name, tmp_path, command, monkeypatch):
    from hydra.core.plugins import Plugins

    Plugins.instance()  # imports them anew, once
    from layergraft.sweeps import grid, launchers

    planned = []
    monkeypatch.setattr(launchers.LocalLauncher, "launch", lambda self, jobs, **_: planned.extend(jobs))
    monkeypatch.setattr(grid, "finish", lambda *_: None)
    code, _, err = command("train", "-m", f"+experiment={name}", "size=digits", f"exec.outputs={tmp_path}", "seed=0")
    assert code == 0 and planned, err


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
