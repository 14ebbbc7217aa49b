"""The Python API: the same runs as the command line, by the same words, with the same errors."""

import json

import pandas as pd
import pytest
import torch
from torch import nn

import layergraft
from layergraft import Data, Donor, Host, RunFailed, Strategy, Surgery, UserError, fit, graft, load_runs
from layergraft.api import _text

HOST = Host("resnet8", width=4)
SMALL = {"data": Data("digits", train_size=50), "schedule": {"epochs": 2}, "optim": {"batch_size": 25}}
SAME = ["host=resnet8", "host.width=4", "data=digits", "data.train_size=50", "schedule.epochs=2", "optim.batch_size=25"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_fit_is_the_run_of_the_command_line(here, command):
    donor = Donor("trained", data=Data("digits", half="A"), schedule={"epochs": 1}, kernel_size=5)
    run = fit(HOST, donor, site="late", strategy=Strategy("hybrid", phases={"thaw": {"epoch": 1}}), seed=3, **SMALL)
    code, out, err = command("train", *SAME, "donor.data=digits", "donor.data.half=A", "donor.schedule.epochs=1",
                           "donor.kernel_size=5", "site=late", "strategy=hybrid", "strategy.phases.thaw.epoch=1", "seed=3")  # fmt: skip
    assert code == 0 and run.key in out + err
    assert [path.name for path in (here / "outputs" / "runs").iterdir()] == [run.key]
    assert run.metrics == json.loads((run.folder / "record.json").read_text())["metrics"]
    assert list(run.curves["epoch"]) == [0, 1]
    assert repr(run) == f"Run({run.key}: test accuracy {run.metrics['test/acc']:.1f}%)"
    table = load_runs()
    assert isinstance(table, pd.DataFrame)
    assert table.loc[0, ["key", "test/acc"]].tolist() == [run.key, run.metrics["test/acc"]]
    assert len(load_runs("outputs/runs", where="seed=3")) == 1
    counted = pd.crosstab(run.predictions.label, run.predictions.filter(like="logit_").to_numpy().argmax(1))
    assert counted.reindex(columns=range(10), fill_value=0).to_numpy().tolist() == run.record.confusion
    network = run.network()
    assert not network.training and network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_module_goes_in_as_it_is(here):
    mine = nn.Conv2d(1, 4, 3, padding=1)
    grafted = graft(HOST, mine, site="early", data="digits")
    assert "conv1" in str(grafted)
    inside = [m for m in grafted.network.modules() if isinstance(m, nn.Conv2d) and torch.equal(m.weight, mine.weight)]
    assert len(inside) == 1 and torch.equal(inside[0].bias, mine.bias)
    assert grafted.network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_frozen_module_is_in_the_trained_network_unchanged(here):
    mine = nn.Conv2d(1, 4, 3, padding=1)
    run = fit(HOST, mine, site="early", strategy="freeze", **SMALL)
    assert any(torch.equal(tensor, mine.weight) for tensor in run.network().state_dict().values())


def test_options_reach_the_config(here):
    grafted = graft(
        HOST, nn.Conv2d(1, 4, 5, padding=2), site="early", data="digits", surgery=Surgery("parallel", gate=0.0)
    )
    parallel = [name for name, _ in grafted.network.named_parameters() if "gate" in name]
    assert len(parallel) == 1


@pytest.mark.parametrize(
    "make, line",
    [
        (lambda: fit("resnet9", "trained"), "unknown host 'resnet9'; did you mean 'resnet8'?"),
        (lambda: fit(Host("resnet8", widht=3), "trained"), "unknown key in host: 'widht'; did you mean 'width'?"),
        (lambda: fit(HOST, "trained", sitee="early"), "unknown key 'sitee'; did you mean 'site'?"),
        (lambda: fit(HOST, nn.Conv2d(1, 4, 3), site="late", data="digits"), "the donor does not fit layer3.0.conv2"),
        (lambda: graft(HOST, nn.Linear(2, 2), site="late", data="digits"), "no square 2-D convolution"),
        (lambda: graft(HOST, "none", data="digits", strategy="full"), "donor=none puts nothing in"),
        (lambda: fit(HOST, "trained", data=Data("folder", path="nowhere")), "nowhere"),
        (lambda: load_runs("nowhere"), "nowhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_one_line(make, line, here):
    with pytest.raises(UserError) as raised:
        make()
    assert line in str(raised.value) and "\n" not in str(raised.value)
    assert not (here / "outputs" / "runs").exists()


def test_a_run_that_diverges_raises_and_is_kept(here):
    with pytest.raises(RunFailed, match="the run diverged: .*record.json"):
        fit(HOST, "random", strategy="full", **{**SMALL, "optim": {"name": "sgd", "batch_size": 25, "lr": 1e30}})
    assert load_runs().status.tolist() == ["diverged"]


def test_choices_of_ones_own(here):
    (here / "mine" / "strategy").mkdir(parents=True)
    (here / "mine" / "strategy" / "gentle.yaml").write_text(
        "# all at half the rate\nname: gentle\ngroups: {all: ['.*']}\nphases:\n  all: {epoch: 0, train: {all: 0.5}}\n"
    )
    run = fit(HOST, "random", strategy="gentle", config_dir="mine", **SMALL)
    assert run.key.startswith("gentle.") and run.curves.filter(like="lr/").to_numpy().tolist() == [[0.0005], [0.0005]]


def test_choices_of_another_say_no_place_to_write_to(here):
    (here / "theirs" / "exec").mkdir(parents=True)
    (here / "theirs" / "exec" / "theirs.yaml").write_text(f"outputs: {here.parent}/elsewhere\n")
    with pytest.raises(UserError, match="exec.outputs is .*elsewhere, by a config in a folder that was given"):
        fit(HOST, "random", config_dir="theirs", overrides=["exec=theirs"], **SMALL)
    with pytest.raises(UserError, match="config_dir is nowhere; there is no such folder"):
        fit(HOST, "random", config_dir="nowhere", **SMALL)


@pytest.mark.parametrize("value", [None, True, 3, -0.5, 1e-9, "a b", "it's", "null", "a,b", "x=y", "C:\\dir\\", "${seed}", "", "[1]",
                                   [1, "a b", None], {"a": [0.5, "x y"], "b": "true"}])  # fmt: skip
def test_values_survive_the_grammar_of_overrides(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides([f"key={_text(value)}"])
    assert override.value() == value


def test_the_package_says_what_it_has_and_nothing_heavy_is_imported():
    import subprocess
    import sys

    assert set(layergraft.__all__) <= set(dir(layergraft))
    code = "import layergraft, sys; layergraft.Host('resnet8'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Hots'"):
        layergraft.Hots  # noqa: B018


def test_a_host_is_pretrained_in_the_same_words(tmp_path):
    pretrain = {"data": "digits_a", "schedule": {"epochs": 1}}
    asked = dict(
        site="late", strategy="full", data="digits_b_blurred", schedule={"epochs": 1}, exec={"outputs": str(tmp_path)}
    )
    run = fit(Host("resnet8", width=2, pretrain=pretrain), "random", **asked)
    assert run.record.host["data"] == "digits_a" and run.record.host["head"] == "kept"
    for nothing in ({"pretrain": {"data": None}}, {"pretrain": {"data": "none"}}):
        assert fit(Host("resnet8", width=2, **nothing), "random", **asked).record.host == {"head": "new"}
    other = fit(Host("resnet8", width=2), "random", **asked | {"data": Data("digits", train_size=50)})
    assert other.record.host == {"head": "new"}  # the default host is pretrained for the default target
