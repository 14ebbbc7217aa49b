"""Optimizers, accumulation, clipping, regularizers, early stopping, compilation, divergence."""

import copy
import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from conftest import CPU, TINY
from layergraft.config.registry import validate
from layergraft.config.training_schema import (
    OptimSpec,
    PhaseSpec,
    PlateauSpec,
    RegularizerSpec,
    ScheduleSpec,
    StrategySpec,
)
from layergraft.data.batches import Batches, BatchSpec
from layergraft.errors import UserError
from layergraft.hosts import CifarResNet
from layergraft.hosts.norms import norm_paths, statistics_paths
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute
from layergraft.strategies.phases import make_plan
from layergraft.training import optimizers
from layergraft.training.backend import Backend
from layergraft.training.checkpoints import CHECKPOINT, facts_of
from layergraft.training.fit import CheckpointSettings, fit
from layergraft.training.lightning_module import Diverged
from layergraft.training.recipe import Recipe

GROUP = CifarResNet("resnet8", width=4, norm="group")
BATCH = CifarResNet("resnet8", width=4)
ALL = StrategySpec("all", groups={"all": [".*"]}, phases={"p": PhaseSpec(0, {"all": 1.0})})
FREEZE = StrategySpec(
    "f", groups={"early": ["stem", "layer1"], "rest": [".*"]}, phases={"p": PhaseSpec(0, {"rest": 1.0}, ["early"])}
)
HALFWAY = StrategySpec("h", groups={"early": ["stem", "layer1"], "rest": [".*"]}, phases={
    "a": PhaseSpec(0, {"rest": 1.0}, ["early"]), "b": PhaseSpec(2, {"rest": 1.0, "early": 0.1})})  # fmt: skip


def start(images, host, optim, regularizer=None, strategy=ALL, epochs=3, shift=1):
    data = images(channels=1, size=8)
    network = host.build(data.shape, data.num_classes, seed=0)
    names = [name for name, _ in network.named_parameters()]
    plan = make_plan(strategy, names, statistics_paths(network), host.roles | {"norm": norm_paths(network)}, epochs)
    regularizer = regularizer or RegularizerSpec()
    spec = BatchSpec(optim.batch_size, optim.accumulate, shift, regularizer.mixup)
    return network, plan, Batches.of(data, spec, 0, "cpu"), Recipe(optim, ScheduleSpec(epochs=epochs), regularizer)


def steps(network, optimizer, batches, epochs, after=lambda: None, **loss):
    """A plain loop."""
    for epoch in range(epochs):
        batches.train.set_epoch(epoch)
        for x, y in batches.train:
            value = F.cross_entropy(network(x), y, **loss)
            optimizer.zero_grad()
            value.backward()
            after()
            optimizer.step()


def require_close(network, expected, atol=2e-6):
    for name, tensor in expected.items():
        torch.testing.assert_close(network.state_dict()[name], tensor, rtol=0, atol=atol, msg=name)


# Optimizers


@pytest.mark.parametrize("name", sorted(set(optimizers.CLASSES)))
def test_every_optimizer_of_torch_trains(name, images):
    options = {"lr": 0.01}
    network, plan, batches, recipe = start(
        images, GROUP, OptimSpec(name, batch_size=10, **options), strategy=HALFWAY, epochs=3
    )
    before = network.conv1.weight.clone()
    fitted = fit(network, plan, batches, recipe, CPU)
    assert math.isfinite(fitted.curves[-1]["train/loss"]) and not torch.equal(network.conv1.weight, before)


def test_an_optimizer_by_name_is_torchs(images):
    optim = OptimSpec("NAdam", 0.01, options={"betas": [0.8, 0.9]}, batch_size=10)
    network, plan, batches, recipe = start(images, GROUP, optim)
    theirs = copy.deepcopy(network)
    steps(theirs, torch.optim.NAdam(theirs.parameters(), lr=0.01, betas=(0.8, 0.9)), batches, 3)
    fit(network, plan, batches, recipe, CPU)
    require_close(network, theirs.state_dict())


def test_tensors_of_one_dimension_can_be_left_out_of_weight_decay(images):
    optim = OptimSpec("sgd", 0.1, weight_decay=0.5, decay_1d=False, batch_size=10)
    network, plan, batches, recipe = start(images, GROUP, optim)
    theirs = copy.deepcopy(network)
    flat = [p for p in theirs.parameters() if p.ndim == 1]
    rest = [p for p in theirs.parameters() if p.ndim > 1]
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.5}]
    steps(theirs, torch.optim.SGD(groups, lr=0.1, momentum=0.9), batches, 3)
    fit(network, plan, batches, recipe, CPU)
    require_close(network, theirs.state_dict())
    groups = optimizers.groups_of(network, plan, optim)
    assert [group["name"] for group in groups] == ["all, weight decay 0.5", "all, weight decay 0"]


def test_weight_decay_of_a_group_takes_the_place_of_the_optimizers(images):
    strategy = StrategySpec("s", groups={"head": ["head"], "rest": [".*"]}, weight_decay={"head": 0.3},
                            phases={"p": PhaseSpec(0, {"head": 1.0, "rest": 1.0})})  # fmt: skip
    network, plan, _, recipe = start(
        images, GROUP, OptimSpec("sgd", weight_decay=0.1, batch_size=10), strategy=strategy
    )
    groups = optimizers.groups_of(network, plan, recipe.optim)
    assert [(group["group"], group["weight_decay"]) for group in groups] == [("head", 0.3), ("rest", 0.1)]


BAD_OPTIM = {
    "name": (["optim.name=adan"], "unknown optimizer in optim.name: 'adan'; did you mean 'adam'?"),
    "no closure": (["optim.name=lbfgs"], "unknown optimizer in optim.name: 'lbfgs'"),
    "option": (["+optim.options.beta=[0.9,0.9]"], "unknown option of adam in optim.options: 'beta'; did you mean 'betas'?"),
    "own": (["+optim.options.lr=0.1"], "optim.options.lr: give optim.lr itself"),
    "value": (["+optim.options.betas=[2,3]"], "optim: adam refuses its options: Invalid beta parameter"),
    "type": (["+optim.options.betas=fast"], "optim: adam refuses its options"),
    "no decay": (["optim.name=rprop", "optim.weight_decay=0.1"], "optim.weight_decay is 0.1, but rprop has none"),
    "batches": (["optim.accumulate=100"], "optim.batch_size is 50 x optim.accumulate=100, but there are 100 training images"),
    "clip": (["optim.clip_norm=0"], "optim.clip_norm is 0.0; it must be above 0, or null for no clipping"),
    "smoothing": (["regularizer.label_smoothing=1"], "regularizer.label_smoothing is 1.0; it must be in [0, 1)"),
    "two averages": (["regularizer.ema=0.9", "regularizer.swa=0.5"], "regularizer.ema and regularizer.swa are both set"),
    "a probe past the end": (["exec.probe.epochs=[99]"], "exec.probe.epochs has 99, but training ends after 30 epochs"),
    "seconds": (["exec.checkpoint_seconds=-5"], "exec.checkpoint_seconds is -5.0; it must be 0 or more, or null"),
    "yes or no": (["+optim.options.amsgrad=maybe"], "optim.options.amsgrad is maybe; it must be true or false"),
    "no lr": (["optim.lr=0"], "optim.lr is 0.0; a learning rate must be above 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_OPTIM)
def test_what_cannot_be_is_one_line_before_any_training(case, config):
    overrides, message = BAD_OPTIM[case]
    with pytest.raises(UserError) as error:
        plan_run(config(*overrides, "optim.batch_size=50"))
    assert message in str(error.value) and "\n" not in str(error.value)


# Batches


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("strategy", [ALL, HALFWAY], ids=["all", "halfway"])
def test_accumulated_batches_train_as_the_larger_batch(optim, strategy, images):
    ends = []
    for size, accumulate in ((20, 1), (5, 4)):
        spec = OptimSpec(optim, 0.01, batch_size=size, accumulate=accumulate, clip_norm=0.7)
        network, plan, batches, recipe = start(images, GROUP, spec, strategy=strategy)
        fitted = fit(network, plan, batches, recipe, CPU)
        ends.append((network.state_dict(), fitted))
    (larger, one), (small, two) = ends
    for name, tensor in larger.items():
        torch.testing.assert_close(small[name], tensor, rtol=0, atol=1e-5, msg=name)
    assert [p["train/loss"] for p in one.curves] == pytest.approx([p["train/loss"] for p in two.curves], abs=1e-5)


def test_the_gradient_is_clipped_to_its_norm(images):
    network, plan, batches, recipe = start(images, GROUP, OptimSpec("sgd", 0.1, batch_size=10, clip_norm=0.05))
    theirs = copy.deepcopy(network)

    def clip():
        assert nn.utils.clip_grad_norm_(theirs.parameters(), 0.05) > 0.05

    steps(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9), batches, 3, clip)
    fit(network, plan, batches, recipe, CPU)
    require_close(network, theirs.state_dict())


@pytest.mark.parametrize("optim", ["adam", "sgd"])
def test_clipping_accumulation_and_averages_in_bf16(optim, images):
    """Lightning's own clipping refuses fused optimizers in mixed precision."""
    spec = OptimSpec(optim, 0.05, batch_size=10, accumulate=2, clip_norm=0.05)
    network, plan, batches, recipe = start(images, GROUP, spec, RegularizerSpec(ema=0.5))
    full = copy.deepcopy(network)
    fitted = fit(network, plan, batches, recipe, Backend("cpu", "bf16_mixed"))
    exact = fit(full, plan, batches, recipe, CPU)
    assert fitted.curves[-1]["train/loss"] == pytest.approx(exact.curves[-1]["train/loss"], abs=0.05)
    assert all(parameter.dtype is torch.float32 for parameter in network.parameters())


# Regularizers


def test_label_smoothing_is_torchs(images):
    network, plan, batches, recipe = start(
        images, GROUP, OptimSpec("sgd", 0.1, batch_size=10), RegularizerSpec(label_smoothing=0.2)
    )
    theirs = copy.deepcopy(network)
    steps(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9), batches, 3, label_smoothing=0.2)
    fit(network, plan, batches, recipe, CPU)
    require_close(network, theirs.state_dict())


def test_mixup_mixes_images_and_labels_alike(images):
    data = images(channels=1, size=8)
    plain = Batches.of(data, BatchSpec(10), 0, "cpu").train
    mixed = Batches.of(data, BatchSpec(10, mixup=0.4), 0, "cpu").train
    parts = []
    for (x, y), (mixed_x, shares) in zip(plain, mixed, strict=True):
        assert shares.shape == (10, 4) and torch.allclose(shares.sum(1), torch.ones(10))
        # Each mixed image is a line between its own image and that of one partner; least squares finds where on it.
        for i in range(10):
            fits = []
            for j in range(10):
                line = (x[i] - x[j]).flatten()
                part = 1.0 if i == j else float(((mixed_x[i] - x[j]).flatten() @ line) / (line @ line))
                fits.append((float((part * x[i] + (1 - part) * x[j] - mixed_x[i]).abs().max()), part, j))
            error, part, j = min(fits)
            expected = part * F.one_hot(y[i], 4) + (1 - part) * F.one_hot(y[j], 4)
            assert error < 1e-4 and torch.allclose(shares[i], expected.float(), atol=1e-4)
            if j != i and part < 0.9999:  # else it is its own partner
                parts.append(round(part, 4))
    assert len(set(parts)) == 4  # a part for each batch
    again = Batches.of(data, BatchSpec(10, mixup=0.4), 0, "cpu").train
    assert all(torch.equal(a[0], b[0]) for a, b in zip(mixed, again, strict=True))


def test_ema_is_the_formula_and_what_is_validated_and_kept(images):
    network, plan, batches, recipe = start(
        images, BATCH, OptimSpec("sgd", 0.1, batch_size=10), RegularizerSpec(ema=0.9), FREEZE
    )
    theirs = copy.deepcopy(network).train()
    average = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    for norm in (theirs.bn1, *(m for m in theirs.layer1.modules() if isinstance(m, nn.BatchNorm2d))):
        norm.eval()
    learning = [p for name, p in theirs.named_parameters() if not name.startswith(("conv1", "bn1", "layer1"))]
    optimizer = torch.optim.SGD(learning, lr=0.1, momentum=0.9)
    taken = 0
    for epoch in range(3):
        batches.train.set_epoch(epoch)
        for x, y in batches.train:
            optimizer.zero_grad()
            F.cross_entropy(theirs(x), y).backward()
            optimizer.step()
            for name, tensor in theirs.state_dict().items():
                decay = min(0.9, (1 + taken) / (10 + taken))  # it climbs: 0.1, 0.18, 0.25, ...
                average[name] = (
                    decay * average[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor.clone()
                )
            taken += 1
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fitted = fit(network, plan, batches, recipe, CPU)
    require_close(network, average)
    for name, tensor in before.items():  # what is frozen is averaged to what it is, bit for bit
        assert torch.equal(network.state_dict()[name], tensor) == name.startswith(("conv1", "bn1", "layer1"))
    theirs.load_state_dict(average)
    theirs.eval()
    right = sum((theirs(x).argmax(1) == y).sum().item() for x, y in batches.val)
    assert fitted.curves[-1]["val/acc"] == fitted.val["acc"] == pytest.approx(100 * right / 20)


def test_swa_is_the_mean_of_the_last_epochs_with_its_own_statistics(images):
    class Keep(pl.Callback):
        ends = []

        def on_train_epoch_end(self, trainer, module):
            self.ends.append({name: tensor.clone() for name, tensor in module.network.state_dict().items()})

    network, plan, batches, recipe = start(
        images, BATCH, OptimSpec("sgd", 0.1, batch_size=10), RegularizerSpec(swa=0.5), FREEZE, epochs=4
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fit(network, plan, batches, recipe, CPU, callbacks=[Keep()])
    now = network.state_dict()
    for name, parameter in network.named_parameters():
        mean = (Keep.ends[2][name] + Keep.ends[3][name]) / 2
        torch.testing.assert_close(parameter.data, mean, rtol=0, atol=1e-6, msg=name)
    frozen = [name for name in before if name.startswith(("conv1", "bn1", "layer1"))]
    assert frozen and all(torch.equal(now[name], before[name]) for name in frozen)
    theirs = copy.deepcopy(network)
    moving = [
        m
        for name, m in theirs.named_modules()
        if isinstance(m, nn.BatchNorm2d) and not name.startswith(("bn1", "layer1"))
    ]
    theirs.eval()
    for norm in moving:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for x, _ in batches.train.of_epoch(4):
            theirs(x)
    require_close(network, theirs.state_dict(), 1e-6)


# When to stop


def test_early_stopping_ends_training_and_carries_the_last_accuracy_forward(images):
    network, plan, batches, recipe = start(images, GROUP, OptimSpec("sgd", 1e-6, batch_size=10), epochs=9)
    schedule = ScheduleSpec(epochs=9, early_stopping=PlateauSpec("val/acc", 2))
    fitted = fit(network, plan, batches, Recipe(recipe.optim, schedule), CPU)
    accuracies = [point["val/acc"] for point in fitted.curves]
    assert len(accuracies) == 3 and len(set(accuracies)) == 1  # nothing moves at such a rate
    assert fitted.summary()["val/aulc"] == pytest.approx(accuracies[0])


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(images, tmp_path):
    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.current_epoch == 2 and batch_idx == 1:
                module.network.fc.weight.data.fill_(math.nan)

    network, plan, batches, recipe = start(images, GROUP, OptimSpec("sgd", 0.1, batch_size=10), epochs=5)
    with pytest.raises(Diverged, match="the training loss is nan in epoch 2"):
        fit(network, plan, batches, recipe, CPU, saving=CheckpointSettings(tmp_path, 0, {}), callbacks=[Poison()])
    checkpoint = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert checkpoint["epoch"] == 2 and checkpoint["global_step"] == 9  # after the first batch of epoch 2
    assert all(t.isfinite().all() for t in checkpoint["state_dict"].values() if t.is_floating_point())


def test_a_run_that_diverges_is_recorded_with_its_checkpoint(config, tmp_path):
    overrides = [*TINY, "schedule.epochs=4", "optim=sgd", "optim.lr=0.05", "strategy=hybrid", f"exec.outputs={tmp_path}",
                 "strategy.phases.thaw.train.rest=1e38", "exec.checkpoint_seconds=0"]  # fmt: skip
    record = execute(plan_run(config(*overrides)))
    assert record.status == "diverged" and "loss is" in record.error
    folder = tmp_path / "runs" / record.key
    assert facts_of(folder / CHECKPOINT)["config"]["strategy"]["name"] == "hybrid"
    checkpoint = torch.load(folder / CHECKPOINT, weights_only=True)
    assert checkpoint["epoch"] >= 1 and not (folder / "model.safetensors").exists()
    assert execute(plan_run(config(*overrides))) == record  # it would diverge again


def test_bad_values_name_their_keys():
    with pytest.raises(UserError, match=r"optim.accumulate is 0; it must be 1 or more"):
        validate(OptimSpec(accumulate=0), "optim")
    with pytest.raises(UserError, match=r"strategy.split.all.decay is 2.0; it must be in \(0, 1\]"):
        from layergraft.config.training_schema import SplitSpec

        validate(StrategySpec("s", split={"all": SplitSpec(decay=2.0)}), "strategy")
    with pytest.raises(UserError, match=r"strategy.phases.p.plateau.patience is 0; it must be 1 or more"):
        validate(StrategySpec("s", phases={"p": PhaseSpec(0, plateau=PlateauSpec(patience=0))}), "strategy")


def test_no_step_waits_for_the_device(images, monkeypatch, tmp_path):
    """Whatever reads a tensor back makes the host wait: it happens as often in an epoch of 8 steps as in one of 2."""
    counts = []
    for size in (20, 5):
        network, plan, batches, recipe = start(images, BATCH, OptimSpec("adam", batch_size=size, clip_norm=1.0),
                                               RegularizerSpec(ema=0.9, label_smoothing=0.1), HALFWAY)  # fmt: skip
        count: list[int] = []
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy", "cpu"):
                plain = getattr(torch.Tensor, name)
                patch.setattr(
                    torch.Tensor, name, lambda *a, plain=plain, count=count, **k: (count.append(1), plain(*a, **k))[1]
                )
            (tmp_path / str(size)).mkdir()
            fit(network, plan, batches, recipe, CPU, saving=CheckpointSettings(tmp_path / str(size), 3600.0, {}))
        counts.append(len(count))
    assert counts[0] == counts[1] > 0


def test_options_that_exclude_the_fused_optimizer(images):
    spec = OptimSpec("adam", 0.01, options={"foreach": True}, batch_size=10)
    network, plan, _, _ = start(images, GROUP, spec)
    assert optimizers.make(network, plan, spec).defaults["fused"] is None
    assert optimizers.make(network, plan, OptimSpec("adam", 0.01)).defaults["fused"] is True


def test_momentum_is_of_sgd_alone_and_in_no_other_key(config):
    keys = {plan_run(config("strategy=freeze", f"optim.momentum={momentum}")).key for momentum in (0.1, 0.9)}
    assert len(keys) == 1
    keys = {
        plan_run(config("strategy=freeze", "optim=sgd", f"optim.momentum={momentum}")).key for momentum in (0.1, 0.9)
    }
    assert len(keys) == 2
