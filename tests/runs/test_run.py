"""One run: its key, its record, its place in the store."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from conftest import TINY
from layergraft.errors import UserError
from layergraft.runs import run as runs
from layergraft.runs.assemble import assemble, checked
from layergraft.runs.run import execute
from layergraft.training.fit import Backend
from layergraft.training.module import Diverged

CPU = Backend("cpu", "float32")


@pytest.fixture
def tiny(config, tmp_path):
    return lambda *overrides: config(*TINY, f"exec.outputs={tmp_path}", *overrides)


def test_what_a_run_writes(tiny, tmp_path):
    record = execute(tiny("strategy=hybrid", "site=late", "seed=3"))
    folder = tmp_path / "runs" / record["key"]
    assert record["key"].startswith("hybrid.late.resnet18.trained.seed3.")
    assert {path.name.split(".")[0] for path in folder.iterdir()} == {"config", "curves", "events", "model", "record"}
    assert json.loads((folder / "record.json").read_text()) == record
    assert record["status"] == "completed" and record["surgery"][0]["site"] == "layer4.1.conv2"
    assert record["axes"] == {
        "strategy": "hybrid",
        "site": "late",
        "host": "resnet18",
        "donor": "trained",
        "data": "digits",
        "seed": 3,
    }
    assert (tmp_path / "donors" / record["donors"][0]["key"] / "donor.safetensors").exists()
    curves = pd.read_csv(folder / "curves.csv")
    assert list(curves.epoch) == [0, 1]
    assert curves["val/acc"].iloc[-1] == record["metrics"]["val/acc"]
    assert list(curves["lr/graft"]) == [0.0, pytest.approx(1e-4)]  # frozen, then unfrozen at a tenth
    assert (
        record["plan"]["groups"]["graft"]["parameters"]
        == load_file(folder / "model.safetensors")["layer4.1.conv2.weight"].numel()
    )


def test_a_frozen_donor_is_byte_identical_in_the_trained_network(tiny, tmp_path):
    record = execute(tiny("strategy=freeze", "site=middle"))
    donor = load_file(tmp_path / "donors" / record["donors"][0]["key"] / "donor.safetensors")["weight"]
    assert torch.equal(
        load_file(tmp_path / "runs" / record["key"] / "model.safetensors")[f"{record['surgery'][0]['site']}.weight"],
        donor,
    )


def test_the_store_is_a_memory(tiny, tmp_path, monkeypatch):
    first = execute(tiny())
    monkeypatch.setattr(runs, "fit", None)  # to train again would raise
    assert execute(tiny()) == first
    monkeypatch.undo()
    again = execute(tiny("exec.rerun=true"))
    assert (
        again["metrics"] == first["metrics"] and again["started"] >= first["started"]
    )  # the same numbers, bit for bit


def test_key_holds_what_decides_the_numbers_and_no_more(config):
    base = checked(config("strategy=freeze")).key
    same = ["exec=cpu", "exec.workers=3", "exec.outputs=elsewhere", "exec.threads=2", "precision=float32"]
    assert {checked(config("strategy=freeze", override)).key for override in same} == {base}
    others = ["seed=1", "optim.lr=0.002", "site=late", "data.shift=0", "donor.k=3", "donor.data.classes=[5,6]", "host.width=32",
              "schedule.epochs=29", "precision=bf16_mixed", "donor=random", "strategy.groups.graft=[head]"]  # fmt: skip
    assert len({checked(config("strategy=freeze", override)).key for override in others} | {base}) == len(others) + 1


def test_a_key_stays_in_its_folder(config):
    key = checked(config("strategy=freeze", "strategy.name='../../a b'")).key
    assert key.startswith("..-..-a-b.early.resnet18.trained.seed0.") and "/" not in key


def test_scratch_does_not_depend_on_the_site(config):
    keys = {checked(config("donor=none", "strategy=full", f"site={site}")).key for site in ("early", "late")}
    assert len(keys) == 1


def test_arms_of_a_seed_share_host_data_and_order(config, tmp_path):
    arms = [assemble(config(*TINY[:2], "optim.batch_size=25", f"exec.outputs={tmp_path}", *arm)) for arm in
            (["donor=none", "strategy=full"], ["donor=random", "strategy=freeze", "site=late"], TINY[2:3] + ["strategy=hybrid", "site=late"])]  # fmt: skip
    scratch = arms[0].network.state_dict()
    for arm in arms[1:]:
        different = {
            name for name, tensor in arm.network.state_dict().items() if not torch.equal(tensor, scratch[name])
        }
        assert different == {"layer4.1.conv2.weight"}
        assert (arm.data.train.x_NCHW == arms[0].data.train.x_NCHW).all()


def test_a_failure_leaves_its_traceback(tiny, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(runs, "fit", broken)
    record = execute(tiny())
    assert (record["status"], record["error"]) == ("failed", "RuntimeError: out of cheese")
    assert "in broken" in record["traceback"]
    assert json.loads((tmp_path / "runs" / record["key"] / "record.json").read_text()) == record
    monkeypatch.undo()
    assert execute(tiny())["status"] == "completed"  # what failed is tried again


def test_divergence_and_interruption_are_recorded(tiny, tmp_path, monkeypatch):
    def raising(error):
        def fit(*_, **__):
            raise error

        return fit

    monkeypatch.setattr(runs, "fit", raising(Diverged("the training loss is nan in epoch 1")))
    assert execute(tiny())["status"] == "diverged"
    monkeypatch.setattr(runs, "fit", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        execute(tiny("seed=1"))
    (folder,) = [path for path in (tmp_path / "runs").glob("*.seed1.*") if path.is_dir()]
    assert json.loads((folder / "record.json").read_text())["status"] == "interrupted"


def test_a_real_divergence(tiny):
    record = execute(tiny("optim=sgd", "optim.batch_size=25", "optim.lr=1e30", "strategy=full"))
    assert record["status"] == "diverged" and "epoch 0" in record["error"]


def test_nothing_is_written_for_bad_input(tiny, tmp_path):
    with pytest.raises(UserError):
        execute(tiny("site=layer9"))
    assert list(tmp_path.iterdir()) == []
