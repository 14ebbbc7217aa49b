"""One run: its key, its record, its place in the store."""

import json
import signal
import subprocess
import sys

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import PLAIN, TINY
from layergraft.cli import training_commands
from layergraft.errors import RunFailed, UserError
from layergraft.runs import train as runs
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute
from layergraft.store.records import RunRecord, read_record
from layergraft.training.backend import Backend
from layergraft.training.lightning_module import Diverged

CPU = Backend("cpu", "float32")


@pytest.fixture
def tiny(config, tmp_path):
    return lambda *overrides: config(*TINY, f"exec.outputs={tmp_path}", *overrides)


def test_what_a_run_writes(tiny, tmp_path):
    record = execute(plan_run(tiny("strategy=hybrid", "site=late", "seed=3")))
    folder = tmp_path / "runs" / record.key
    assert record.key.startswith("hybrid.late.resnet18.trained.seed3.")
    written = {"config", "curves", "events", "model", "predictions", "record"}
    assert {path.name.split(".")[0] for path in folder.iterdir()} == written
    assert read_record(folder) == record
    assert record.status == "completed" and record.grafts[0].site == "layer4.1.conv2"
    kinds = {"host": "torchvision_resnet", "donor": "trained", "data": "digits", "surgery": "replace"}
    assert record.kinds == kinds
    assert record.grafts[0].donor_paths == {"": "layer4.1.conv2"} and record.grafts[0].replaced == ["layer4.1.conv2"]
    assert record.units["test/acc"] == "%" and record.units.keys() == record.metrics.keys()
    assert record.axes == {
        "strategy": "hybrid",
        "site": "late",
        "host": "resnet18",
        "donor": "trained",
        "data": "digits_0_to_4",
        "seed": 3,
    }
    assert (tmp_path / "donors" / record.donors[0]["key"] / "donor.safetensors").exists()
    curves = pd.read_csv(folder / "curves.csv")
    assert list(curves.epoch) == [0, 1]
    assert curves["val/acc"].iloc[-1] == record.metrics["val/acc"]
    assert list(curves["lr/graft"]) == [0.0, pytest.approx(1e-4)]  # frozen, then unfrozen at a tenth
    assert (
        record.plan["groups"]["graft"]["parameters"]
        == load_file(folder / "model.safetensors")["layer4.1.conv2.weight"].numel()
    )


def test_a_frozen_donor_is_byte_identical_in_the_trained_network(tiny, tmp_path):
    record = execute(plan_run(tiny("strategy=freeze", "site=middle")))
    donor = load_file(tmp_path / "donors" / record.donors[0]["key"] / "donor.safetensors")["weight"]
    assert torch.equal(
        load_file(tmp_path / "runs" / record.key / "model.safetensors")[f"{record.grafts[0].site}.weight"], donor
    )


def test_the_store_is_a_memory(tiny, tmp_path, monkeypatch):
    first = execute(plan_run(tiny()))
    monkeypatch.setattr(runs, "fit", None)  # to train again would raise
    assert execute(plan_run(tiny())) == first
    monkeypatch.undo()
    again = execute(plan_run(tiny("exec.rerun=true")))
    assert again.metrics == first.metrics and again.started >= first.started  # the same numbers, bit for bit


def test_key_holds_what_decides_the_numbers_and_no_more(config):
    base = plan_run(config("strategy=freeze")).key
    same = ["exec=cpu", "exec.workers=3", "exec.outputs=elsewhere", "exec.threads=2", "precision=float32"]
    assert {plan_run(config("strategy=freeze", override)).key for override in same} == {base}
    others = ["seed=1", "optim.lr=0.002", "site=late", "data.shift=0", "donor.aux_depth=3", "donor.data.classes=[5,6]", "host.width=32",
              "schedule.epochs=29", "precision=bf16_mixed", "donor=random", "strategy.groups.graft=[head]"]  # fmt: skip
    assert len({plan_run(config("strategy=freeze", override)).key for override in others} | {base}) == len(others) + 1


def test_a_key_stays_in_its_folder(config):
    key = plan_run(config("strategy=freeze", "strategy.name='../../a b'")).key
    assert key.startswith("-.-..-a-b.early.resnet18.trained.seed0.") and "/" not in key


def test_no_graft_does_not_depend_on_the_site(config):
    keys = {plan_run(config("donor=none", "strategy=full", f"site={site}")).key for site in ("early", "late")}
    assert len(keys) == 1


def test_arms_of_a_seed_share_host_data_and_order(config, tmp_path):
    arms = [plan_run(config(*TINY[:2], "optim.batch_size=25", f"exec.outputs={tmp_path}", *arm)).build() for arm in
            (["donor=none", "strategy=full"], ["donor=random", "strategy=freeze", "site=late"], TINY[2:3] + ["strategy=hybrid", "site=late"])]  # fmt: skip
    without = arms[0].network.state_dict()
    for arm in arms[1:]:
        different = {
            name for name, tensor in arm.network.state_dict().items() if not torch.equal(tensor, without[name])
        }
        assert different == {"layer4.1.conv2.weight"}
        assert (arm.images.train.x_NCHW == arms[0].images.train.x_NCHW).all()


def test_a_failure_leaves_its_traceback(tiny, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(runs, "fit", broken)
    record = execute(plan_run(tiny()))
    assert (record.status, record.error) == ("failed", "RuntimeError: out of cheese")
    assert "in broken" in record.traceback
    assert read_record(tmp_path / "runs" / record.key) == record
    monkeypatch.undo()
    assert execute(plan_run(tiny())).status == "completed"  # what failed is tried again


def test_divergence_and_interruption_are_recorded(tiny, tmp_path, monkeypatch):
    def raising(error):
        def fit(*_, **__):
            raise error

        return fit

    monkeypatch.setattr(runs, "fit", raising(Diverged("the training loss is nan in epoch 1")))
    assert execute(plan_run(tiny())).status == "diverged"
    monkeypatch.setattr(runs, "fit", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        execute(plan_run(tiny("seed=1")))
    (folder,) = [path for path in (tmp_path / "runs").glob("*.seed1.*") if path.is_dir()]
    assert json.loads((folder / "record.json").read_text())["status"] == "interrupted"


def test_a_real_divergence(tiny):
    record = execute(plan_run(tiny("optim=sgd", "optim.batch_size=25", "optim.lr=1e30", "strategy=full")))
    assert record.status == "diverged" and "epoch 0" in record.error


def test_nothing_is_written_for_bad_input(tiny, tmp_path):
    with pytest.raises(UserError):
        execute(plan_run(tiny("site=layer9")))
    assert list(tmp_path.iterdir()) == []


# Going on

LONG = ["donor=random", "strategy=hybrid", "schedule=cosine", "schedule.epochs=8", "exec.checkpoint_seconds=0"]


KILLED = """
import os, signal, sys
from layergraft.cli import main
from layergraft.training.checkpoints import Checkpoints

save = Checkpoints._save

def save_and_die(self, trainer, module):
    save(self, trainer, module)
    if trainer.current_epoch == 3:
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoints._save = save_and_die
sys.exit(main())
"""


def killed(overrides, outputs):
    """The checkpoint that a run leaves whose process is killed, without warning, after a step of epoch 3."""
    process = subprocess.run([sys.executable, "-c", KILLED, "train", *PLAIN, *overrides, f"exec.outputs={outputs}"])
    assert process.returncode == -signal.SIGKILL
    (checkpoint,) = outputs.glob("runs/*/last.ckpt")
    return checkpoint


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(config, tmp_path):
    overrides = [*TINY[:1], *TINY[3:], *LONG, "exec.threads=1", "exec.probe.epochs=[0,2,-1]"]
    checkpoint = killed(overrides, tmp_path / "killed")
    assert not (checkpoint.parent / "record.json").exists()
    whole = execute(plan_run(config(*overrides, f"exec.outputs={tmp_path / 'whole'}")))
    resumed = execute(plan_run(config(*overrides, f"exec.outputs={tmp_path / 'killed'}")))
    assert (whole.resumed, resumed.resumed) == (False, True) and whole.status == "completed"
    for name in ("key", "metrics", "probes", "plan", "grafts"):
        assert getattr(resumed, name) == getattr(whole, name), name
    for name in ("model.safetensors", "curves.csv"):
        one, two = (tmp_path / which / "runs" / whole.key / name for which in ("whole", "killed"))
        assert one.read_bytes() == two.read_bytes(), name
    assert not checkpoint.exists()  # it is done
    events = EventAccumulator(str(checkpoint.parent))
    events.Reload()
    assert [event.step for event in events.Scalars("val/acc")] == list(range(8))  # no epoch twice
    assert "plan" in events.Tags()["images"]
    assert [event.step for event in events.Scalars("probe/drift")] == [0, 2, 8]
    assert {event.step for event in events.Images("filters/conv1.weight")} >= {0, 8}


def test_a_run_that_was_interrupted_goes_on_and_one_that_failed_does_not(tiny, tmp_path, monkeypatch):
    class Stop(pl.Callback):
        def __init__(self, error):
            self.error = error

        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 5:
                raise self.error

    settings = tiny(*LONG[1:])
    with pytest.raises(KeyboardInterrupt):
        execute(plan_run(settings), [Stop(KeyboardInterrupt())])
    first = execute(plan_run(settings), [Stop(ValueError("no luck"))])
    assert first.resumed and first.status == "failed"
    again = execute(plan_run(settings))
    assert not again.resumed and again.status == "completed"  # what failed may fail for what it was resumed from


@pytest.mark.parametrize("asked, said", [("auto", True), ("bf16_mixed", False), ("float32", False)])
def test_a_gpu_without_bf16_is_trained_on_in_float32_which_is_said(config, monkeypatch, capsys, asked, said):
    for name, value in {"is_available": True, "device_count": 1, "get_device_capability": (7, 5), "get_device_name": "Tesla T4"}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    run = config("strategy=freeze", "exec=auto", f"precision={asked}")
    backend = plan_run(run).backend
    assert (backend.device, backend.precision) == ("cuda", "float32" if asked == "auto" else asked)

    monkeypatch.setattr(training_commands, "execute", lambda *_: RunRecord("a", "failed", error="not here"))
    with pytest.raises(RunFailed):
        training_commands.train_one(run)
    line = "precision:   float32, since Tesla T4 has no bf16 in hardware"
    assert (line in capsys.readouterr().err) == said
