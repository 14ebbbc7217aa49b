"""Several processes that share each batch end with the same weights, and with those of one process."""

import copy
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch

from conftest import LAYERGRAFT
from layergraft.config.schema import ProbeSpec
from layergraft.config.training_schema import OptimSpec, RegularizerSpec, ScheduleSpec
from layergraft.data.batches import Batches, BatchSpec
from layergraft.errors import UserError
from layergraft.hosts import CifarResNet
from layergraft.hosts.norms import norm_paths, statistics_paths
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute
from layergraft.strategies.phases import make_plan, stage_roles
from layergraft.training import ddp
from layergraft.training.backend import Backend
from layergraft.training.checkpoints import CHECKPOINT
from layergraft.training.fit import CheckpointSettings, fit
from layergraft.training.lightning_module import Diverged
from layergraft.training.probes import Probes, ProbeTargets
from layergraft.training.recipe import Recipe

HOST = CifarResNet("resnet8", width=4, norm="group")
ONE, TWO = Backend("cpu", "float32"), Backend("cpu", "float32", devices=2)


def training(images, strategy, optim, epochs=3, regularizer=None, **balance):
    data = replace(images(channels=1, size=8), **balance)
    network = HOST.build(data.shape, data.num_classes, seed=0)
    names = [name for name, _ in network.named_parameters()]
    roles = (
        HOST.roles | stage_roles(["layer1"]) | {"graft": ["layer2.0.conv1"], "adapter": [], "norm": norm_paths(network)}
    )
    plan = make_plan(strategy, names, statistics_paths(network), roles, epochs)
    regularizer = regularizer or RegularizerSpec()
    batches = Batches.of(data, BatchSpec(10, optim.accumulate, 1, regularizer.mixup), 0, "cpu")
    return network, plan, batches, Recipe(optim, ScheduleSpec(epochs=epochs), regularizer)


CASES = {
    "an unfreeze in mid-run": ("hybrid", OptimSpec("sgd", 0.1, weight_decay=0.01, batch_size=10), None),
    "a re-freeze": ("refreeze", OptimSpec("adamw", 1e-3, batch_size=10), None),
    "rates by tensor, class weights": (
        "auto_rgn",
        OptimSpec("sgd", 0.1, batch_size=10),
        None,
        {"class_weights": "balanced", "sampler": "balanced"},
    ),
    "mixup, average, accumulation, clipping": (
        "l2_sp",
        OptimSpec("sgd", 0.1, batch_size=10, accumulate=2, clip_norm=0.5),
        RegularizerSpec(mixup=0.4, ema=0.9),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one_process(case, images, config):
    name, optim, regularizer, *balance = CASES[case]
    strategy = config(f"strategy={name}", "schedule.epochs=3").strategy
    network, plan, batches, recipe = training(images, strategy, optim, regularizer=regularizer, **dict(*balance))
    before = copy.deepcopy(network.state_dict())
    other = copy.deepcopy(network)
    alone = fit(network, plan, batches, recipe, ONE)
    together = ddp.fit(other, plan, batches, recipe, TWO)  # raises where the two ranks differ in one bit
    for key, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[key], rtol=0, atol=1e-5, msg=key)
    moved = {key for key, tensor in other.state_dict().items() if not torch.equal(tensor, before[key])}
    assert "layer2.0.conv1.weight" in moved  # thawed halfway by hybrid
    for one, two in zip(alone.curves, together.curves, strict=True):
        assert one == pytest.approx(two, abs=1e-4)
    torch.testing.assert_close(alone.test_logits, together.test_logits, rtol=0, atol=1e-4)


def test_ranks_that_differ_in_one_bit_are_found(tmp_path):
    network = HOST.build((1, 8, 8), 4, seed=0)
    (tmp_path / "0.digest").write_text(ddp.digest_of(network))
    (tmp_path / "1.digest").write_text(ddp.digest_of(network))
    ddp.require_agreement(tmp_path, 2)
    with torch.no_grad():
        network.fc.bias[0] = torch.nextafter(network.fc.bias[0], torch.tensor(9.0))
    (tmp_path / "1.digest").write_text(ddp.digest_of(network))
    with pytest.raises(RuntimeError, match="the weights of the 2 processes differ after training"):
        ddp.require_agreement(tmp_path, 2)


class KeepMid(pl.Callback):
    """Copies the checkpoint that was written in mid-epoch 1, after its second step."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        new = not (self.folder / "mid.ckpt").exists()
        if new and trainer.is_global_zero and (trainer.current_epoch, batch_idx) == (1, 2):
            shutil.copy(self.folder / CHECKPOINT, self.folder / "mid.ckpt")


def test_ranks_resume_in_mid_epoch_and_look(images, config, tmp_path):
    strategy = config("strategy=hybrid", "schedule.epochs=3").strategy
    network, plan, batches, recipe = training(images, strategy, OptimSpec("sgd", 0.1, batch_size=10))
    again = copy.deepcopy(network)
    subject = ProbeTargets(["layer2.0"], drifting=["layer2.0.conv1.weight"])
    looks, curves = [], []
    for trained, resume in ((network, None), (again, tmp_path / "mid.ckpt")):
        probe = Probes(ProbeSpec([0, -1]), trained, subject, batches.val.first(20), batches.val, 3)
        saving = CheckpointSettings(tmp_path, 0 if resume is None else 1e9, {}, resume)
        fitted = ddp.fit(trained, plan, batches, recipe, TWO, saving=saving, probe=probe, callbacks=[KeepMid(tmp_path)])
        looks.append(probe.points)
        curves.append(fitted.curves)
    assert torch.load(tmp_path / "mid.ckpt", weights_only=True)["global_step"] == 6  # of 4 steps an epoch
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in network.state_dict().items())
    assert curves[0] == curves[1]  # the losses of both ddp, from before the checkpoint too
    assert looks[0] == looks[1] and [point["epoch"] for point in looks[0]] == [0, 3] and looks[0][1]["drift"] > 0


def test_divergence_in_the_ranks_is_divergence(images, config):
    strategy = config("strategy=full", "schedule.epochs=3").strategy
    network, plan, batches, recipe = training(images, strategy, OptimSpec("sgd", 1e30, batch_size=10))
    with pytest.raises(Diverged, match="epoch 0"):
        ddp.fit(network, plan, batches, recipe, TWO)


def test_a_run_on_two_devices_from_its_config(config, tmp_path):
    common = ["host=resnet8", "host.width=4", "host.norm=group", "donor=random", "strategy=hybrid", "schedule.epochs=2", "optim.batch_size=50",
              "optim=sgd", "exec.device=cpu", f"exec.outputs={tmp_path}", "exec.rerun=true"]  # fmt: skip
    alone, together = (execute(plan_run(config(*common, f"exec.devices={number}"))) for number in (1, 2))
    assert together.status == "completed", together.traceback
    assert together.key == alone.key  # the number of devices changes the last bits of a sum alone
    for name in ("test/acc", "val/acc", "train/loss", "drift"):
        assert together.metrics[name] == pytest.approx(alone.metrics[name], abs=1e-3)


def test_batch_norm_over_cpu_processes_is_refused_before_any_training(config):
    from layergraft.runs.plan import plan_run

    with pytest.raises(
        UserError, match="exec.devices=2 on a CPU: batch norm over several processes needs CUDA; host.norm=group"
    ):
        plan_run(config("exec.devices=2", "exec.device=cpu"))
    with pytest.raises(UserError, match="optim.batch_size is 50; exec.devices=3 cannot share it evenly"):
        plan_run(config("exec.devices=3", "exec.device=cpu", "optim.batch_size=50"))


@pytest.mark.slow
def test_an_interrupt_ends_the_ranks_at_once(tmp_path):
    """The parent alone is interrupted, by its pid: none of the ranks may train on, nor write, after it has ended."""
    program = [LAYERGRAFT, "train", "data=digits_0_to_4", "site=early", "strategy=hybrid", "host=resnet8", "host.width=4", "donor=random", "exec=cpu",
               "host.norm=group", "exec.devices=2", "schedule.epochs=2000", "exec.checkpoint_seconds=0.2", f"exec.outputs={tmp_path}"]  # fmt: skip
    process = subprocess.Popen(
        program, stderr=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    while not (found := list(tmp_path.glob("runs/*/last.ckpt"))):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert '"status": "interrupted"' in (found[0].parent / "record.json").read_text()
    written = found[0].stat().st_mtime
    time.sleep(1.5)
    assert found[0].stat().st_mtime == written
