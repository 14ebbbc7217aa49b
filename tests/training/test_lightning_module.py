"""What the module, its phases and its learning rates do."""

import math
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from layergraft.config.schema import Device, Precision
from layergraft.config.training_schema import OptimSpec, PhaseSpec, RegularizerSpec, ScheduleSpec, StrategySpec
from layergraft.data.batches import Batches, BatchSpec
from layergraft.errors import UserError
from layergraft.hosts import TorchvisionResNet
from layergraft.hosts.norms import statistics_paths
from layergraft.strategies.phases import make_plan
from layergraft.training.backend import Backend
from layergraft.training.fit import fit
from layergraft.training.lightning_module import Diverged, PlannedModule
from layergraft.training.recipe import Recipe

HOST = TorchvisionResNet("resnet18", width=4, stem="small")
CPU = Backend("cpu", "float32")
GROUPS = {"early": ["stem", "layer1"], "rest": [".*"]}


def planned(network, phases, epochs, groups=GROUPS):
    names = [name for name, _ in network.named_parameters()]
    return make_plan(
        StrategySpec("s", groups=groups, phases=phases), names, statistics_paths(network), HOST.roles, epochs
    )


def trained(images, phases, epochs=3, optim=None, schedule="constant", regularizer=None, **options):
    data = images(channels=1, size=8)
    network = HOST.build((1, 32, 32), data.num_classes, seed=0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optim = optim or OptimSpec(lr=1e-2, batch_size=10)
    regularizer = regularizer or RegularizerSpec()
    spec = BatchSpec(10, optim.accumulate, shift=1, mixup=regularizer.mixup)
    batches = Batches.of(data, spec, 0, "cpu")
    module = []
    recipe = Recipe(optim, ScheduleSpec(schedule, epochs), regularizer)
    plan = planned(network, phases, epochs)
    fitted = fit(network, plan, batches, recipe, CPU, callbacks=[Keep(module)], **options)
    return fitted, network, before, module[0]


class Keep(pl.Callback):
    """Hands out the LightningModule."""

    def __init__(self, into):
        self.into = into

    def on_fit_start(self, trainer, pl_module):
        self.into.append(pl_module)


def changed(network, before):
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


def is_early(name):
    return name.startswith(("conv1", "bn1", "layer1"))


@pytest.mark.parametrize("optim", [OptimSpec("adamw", 1e-2, weight_decay=0.1), OptimSpec("sgd", 0.1, weight_decay=0.1)])
def test_what_is_frozen_is_byte_identical(images, optim):
    _, network, before, _ = trained(images, {"p": PhaseSpec(0, {"rest": 1.0}, ["early"])}, optim=optim)
    moved = changed(network, before)
    assert not [name for name in moved if is_early(name)]  # weights, affine parameters, statistics, counters
    assert {name for name in before if not is_early(name)} == moved


def test_refrozen_group_stops_and_others_go_on(images):
    phases = {"on": PhaseSpec(0, {"early": 1.0, "rest": 1.0}), "off": PhaseSpec(1, {"rest": 1.0}, ["early"])}
    sgd = OptimSpec("sgd", 0.1, weight_decay=0.1)
    _, one_epoch, *_ = trained(images, {"on": phases["on"]}, epochs=1, optim=sgd)
    _, network, *_ = trained(images, phases, epochs=3, optim=sgd)
    moved = changed(network, one_epoch.state_dict())
    assert not [name for name in moved if is_early(name)]  # no weight decay, no momentum after the re-freeze
    assert "fc.weight" in moved


def test_frozen_group_holds_no_optimizer_state(images):
    *_, module = trained(images, {"p": PhaseSpec(0, {"rest": 1.0}, ["early"])})
    state = module.optimizers().optimizer.state
    with_state = {name for name, p in module.network.named_parameters() if state.get(p)}
    assert with_state == {name for name, _ in module.network.named_parameters() if not is_early(name)}


def test_learning_rates_by_epoch_are_the_ones_written_here(images):
    phases = {"a": PhaseSpec(0, {"rest": 1.0}, ["early"]), "b": PhaseSpec(2, {"early": 0.1, "rest": 0.5})}
    optim = OptimSpec("adam", 0.01)
    fitted, *_ = trained(images, phases, epochs=4, optim=optim)
    assert [p["lr/rest"] for p in fitted.curves] == pytest.approx([0.01, 0.01, 0.005, 0.005])
    assert [p["lr/early"] for p in fitted.curves] == pytest.approx([0, 0, 0.001, 0.001])
    fitted, *_ = trained(images, phases, epochs=4, optim=optim, schedule="cosine")
    share = [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]  # at the first step of each epoch
    assert [p["lr/rest"] for p in fitted.curves] == pytest.approx(
        [0.01 * share[0], 0.01 * share[1], 0.005 * share[2], 0.005 * share[3]]
    )


def test_groups_are_named_in_the_optimizer(images):
    *_, module = trained(images, {"p": PhaseSpec(0, {"rest": 1.0}, ["early"])}, epochs=1)
    assert [group["group"] for group in module.optimizers().param_groups] == ["early", "rest"]


def test_frozen_norms_use_their_running_statistics(images):
    network = HOST.build((1, 16, 16), 4, seed=0)
    plan = planned(network, {"p": PhaseSpec(0, {"rest": 1.0}, ["early"])}, 1)
    module = PlannedModule(network, plan, OptimSpec(), ScheduleSpec(epochs=1), RegularizerSpec(), steps_per_epoch=1)
    module.apply_phase(plan.phase(0), module.configure_optimizers())
    module.eval()
    module.train()  # what Lightning does after validation must not wake them
    assert not network.bn1.training and not network.layer1[0].bn1.training
    assert network.layer2[0].bn1.training and network.training


def test_same_inputs_same_numbers(images):
    phases = {"p": PhaseSpec(0, {"early": 0.1, "rest": 1.0})}
    first, network, *_ = trained(images, phases)
    torch.rand(7)  # whatever the global generator has been through
    second, again, *_ = trained(images, phases)
    assert first.curves == second.curves and first.summary() == second.summary()
    assert not changed(network, again.state_dict())


def test_a_loss_that_is_not_finite_is_divergence(images):
    with pytest.raises(Diverged, match="epoch 0"):
        trained(images, {"p": PhaseSpec(0, {"early": 1.0, "rest": 1.0})}, optim=OptimSpec("sgd", 1e30))


def test_summary(images):
    fitted, *_ = trained(images, {"p": PhaseSpec(0, {"early": 1.0, "rest": 1.0})})
    accuracies = [point["val/acc"] for point in fitted.curves]
    assert len(accuracies) == 3 and all(0 <= a <= 100 and (a / 5).is_integer() for a in accuracies)  # of 20 images
    assert fitted.summary()["val/aulc"] == pytest.approx(sum(accuracies) / 3)
    assert fitted.summary()["val/acc"] == accuracies[-1]


def test_test_accuracy_is_counted_right(images):
    data = images(channels=1, size=8)
    fitted, network, *_ = trained(images, {"p": PhaseSpec(0, {"early": 1.0, "rest": 1.0})})
    batches = Batches.of(data, BatchSpec(10, shift=0), 0, "cpu")
    network.eval()
    with torch.no_grad():
        right = sum((network(x).argmax(1) == y).sum().item() for x, y in batches.test)
    assert fitted.test["acc"] == pytest.approx(100 * right / len(data.test))


def test_class_weights_are_of_the_training_loss_alone(images):
    data = images(channels=1, size=8)
    losses, logits = [], []
    for balance in ("none", "balanced"):
        network = HOST.build((1, 32, 32), data.num_classes, seed=0)
        plan = planned(network, {"p": PhaseSpec(0, {"all": 1.0})}, 1, {"all": [".*"]})
        batches = Batches.of(replace(data, class_weights=balance), BatchSpec(10, shift=0), 0, "cpu")
        # At such a rate nothing moves: every training loss is of the network that it began with.
        recipe = Recipe(OptimSpec("sgd", lr=1e-30, batch_size=10), ScheduleSpec(epochs=1))
        fitted = fit(network, plan, batches, recipe, CPU)
        losses.append(fitted.curves[0]["train/loss"])
        logits.append(fitted.test_logits)
        assert fitted.test["loss"] == pytest.approx(
            nn.functional.cross_entropy(fitted.test_logits, torch.from_numpy(data.test.y_N)).item()
        )
    assert torch.equal(*logits) and losses[0] != pytest.approx(losses[1])
    network.train()  # 40 images: the epoch has each once
    weights = batches.train.class_weights
    with torch.no_grad():
        each = [weights[y] * nn.functional.cross_entropy(network(x), y, reduction="none") for x, y in batches.train]
    assert losses[1] == pytest.approx(torch.cat(each).mean().item(), rel=1e-4)


def test_backend(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Backend.resolve(Device.auto, Precision.auto) == Backend("cpu", "float32")
    with pytest.raises(UserError, match="no CUDA device here"):
        Backend.resolve(Device.cuda, Precision.auto)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, precision in {(7, 5): "float32", (8, 0): "bf16_mixed", (9, 0): "bf16_mixed"}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert Backend.resolve(Device.auto, Precision.auto) == Backend("cuda", precision)
        assert Backend.resolve(Device.auto, Precision.bf16_mixed) == Backend("cuda", "bf16_mixed")
    assert Backend.resolve(Device.cpu, Precision.auto) == Backend("cpu", "float32")


def test_a_cpu_beside_a_gpu_is_no_matter_for_a_warning(images, monkeypatch):
    from pytorch_lightning.accelerators import CUDAAccelerator

    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    test_bf16_mixed_trains_on_the_cpu(images)


def test_bf16_mixed_trains_on_the_cpu(images):
    data = images(channels=1, size=8)
    network = HOST.build((1, 32, 32), data.num_classes, seed=0)
    plan = planned(network, {"p": PhaseSpec(0, {"all": 1.0})}, 2, {"all": [".*"]})
    batches = Batches.of(data, BatchSpec(10, shift=0), 0, "cpu")
    recipe = Recipe(OptimSpec(lr=1e-2), ScheduleSpec(epochs=2))
    fitted = fit(network, plan, batches, recipe, Backend("cpu", "bf16_mixed"))
    assert math.isfinite(fitted.curves[-1]["train/loss"]) and network.fc.weight.dtype is torch.float32


def test_every_kind_of_norm_is_found():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.Sequential(nn.SyncBatchNorm(2)))
    assert statistics_paths(network) == ["0", "2.0"]
