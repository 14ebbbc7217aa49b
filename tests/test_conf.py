"""Contracts over conf/: every file there composes, says what it is, and names itself. A new file is tested as it is."""

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import save_file
from tests.data.written import write

from layergraft.cli.help import groups, line_of, train_help
from layergraft.config.compose import Composer, conf_dir, normalize_overrides, to_config
from layergraft.runs.plan import plan_run

GROUPS = groups([conf_dir()])
CHOICES = [(group, name) for group, names in GROUPS.items() for name in names if group not in ("experiment", "size")]
# What a choice needs beside it to be a run.
WITH = {
    ("donor", "pca"): ["host.width=16"],  # patches of 3 x 3 grey pixels have 9 components, each with its negative
    ("donor", "whitening"): ["host.width=16"],
    ("donor", "extracted"): ["donor.path=DONOR"],
    ("exec", "cuda"): None,  # no run without CUDA: tests/test_cli.py has its error
}


@pytest.mark.parametrize("group, name", CHOICES)
def test_every_choice_composes_and_is_a_run(group, name, config, tmp_path, monkeypatch):
    extra = WITH.get((group, name), [])
    if group == "data" and name != "none":
        (tmp_path / "data").mkdir()
        places = [f"exec.data={tmp_path / 'data'}", f"exec.outputs={tmp_path}", "optim.batch_size=10"]
        extra = [*places, *write(name, tmp_path / "data", monkeypatch)]
    save_file({"weight": torch.ones(64, 1, 3, 3)}, tmp_path / "donor.safetensors")
    extra = extra and [override.replace("DONOR", str(tmp_path / "donor.safetensors")) for override in extra]
    if extra is None:
        assert config(f"{group}={name}").exec.device.name == "cuda"
        return
    at = "host.pretrain.data" if name == "none" and group == "data" else group
    assert plan_run(config(f"{at}={name}", *extra)).key


@pytest.mark.parametrize("group, name", CHOICES)
def test_every_choice_has_its_line_and_its_name(group, name):
    path = conf_dir() / group / f"{name}.yaml"
    assert 10 < len(line_of(path)) < 130, f"{path} starts with a comment: its line in --help"
    content = yaml.safe_load(path.read_text())
    if group in ("strategy", "host", "data", "optim", "schedule"):
        assert content.get("name", name) == name  # without one: that of the choice whose values it changes


def test_help_names_every_choice():
    text = train_help([])
    for group, names in GROUPS.items():
        assert f"{group}=" in text
        for name, line in names.items():
            assert f"  {name:<16} {line}\n" in text


def test_help_names_the_choices_of_an_added_folder(tmp_path):
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text("# all my own\nname: mine\n")
    assert "mine             all my own" in train_help(["--config-dir", str(tmp_path)])


def test_in_a_sweep_over_operations_each_takes_the_keys_that_it_has():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        master = compose("config", overrides=["donor=random", "host=resnet8"], return_hydra_config=True)
        composer = Composer(GlobalHydra.instance().config_loader(), master)
        asked = [
            [f"surgery={name}", f"surgery.gate={gate}", f"surgery.position={position}"]
            for name in ("replace", "insert", "parallel") for gate in ("null", "0") for position in ("before", "after")
        ]  # fmt: skip
        runs = {plan_run(config).key for _, config in composer.each(composer.without_foreign(asked))}
        assert len(runs) == 1 + 4 + 2
        assert (
            composer.without_foreign([["surgery=replace", "surgery.gate=0"]])[0][-1] == "surgery.gate=0"
        )  # refused then
    for swept, key in (
        ("surgery=replace,insert", "surgery.gate=0"),
        ("strategy=full,hybrid", "strategy.split.x.by=block"),
    ):
        assert normalize_overrides([swept, key])[1] == key.replace("=", "=choice(", 1) + ")"


def test_the_quick_composition_is_hydras():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        common = ["+experiment=quickstart", "optim.lr=0.5"]
        master = compose("config", overrides=common, return_hydra_config=True)
        composer = Composer(loader, master)
        combinations = [["strategy=hybrid", "site=late", "seed=1"], ["strategy=hybrid", "site=early", "seed=2", "donor.aux_depth=3"],
                 ["site=conv1", "strategy=full", "donor=none"], ["strategy=hybrid", "strategy.phases.thaw.epoch=3", "site=late"]]  # fmt: skip
        for combination in combinations:
            assert composer(common + combination) == to_config(loader.load_sweep_config(master, common + combination))
        assert len(composer.composed) == 2
