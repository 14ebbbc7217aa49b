"""The frozen prefix: kept where that changes no bit, and nowhere else."""

import copy
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from conftest import CPU
from layergraft.config.compose import conf_dir
from layergraft.config.training_schema import OptimSpec, PhaseSpec, RegularizerSpec, ScheduleSpec, StrategySpec
from layergraft.data.batches import Batches, BatchSpec
from layergraft.donors.random import RandomDonor
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.norms import statistics_paths
from layergraft.hosts.sites import find_sites
from layergraft.strategies.phases import make_plan
from layergraft.surgery import Insert, Parallel, Replace, graft, slot_of
from layergraft.training.backend import Backend
from layergraft.training.fit import CheckpointSettings, _keeps_features, fit
from layergraft.training.lightning_module import Diverged
from layergraft.training.prefix_cache import chain, prefix_of, without
from layergraft.training.recipe import Recipe

KEPT = Backend("cpu", "float32", features_gib=None)
STEM = ["conv1", "bn1"]


def frozen(*still, epochs=3, **phase):
    """The plan of a network whose `still` do not move."""
    groups = {"still": list(still), "rest": [".*"]}
    spec = PhaseSpec(0, train={"rest": 1.0}, freeze=["still"], **phase)
    return StrategySpec("s", groups=groups, phases={"only": spec}), epochs


def both_ways(network, strategy, epochs, data, batch=None, recipe=None, kept=KEPT, **options):
    """(fitted, state) with the prefix kept, after a check that they are the plain ones, bit for bit."""
    recipe = recipe or Recipe(OptimSpec("adam", 1e-2, weight_decay=0.01, batch_size=10), ScheduleSpec("cosine", epochs))
    found = []
    for backend in (replace(kept, features_gib=0.0), kept):
        copied = copy.deepcopy(network)
        names = [name for name, _ in copied.named_parameters()]
        plan = make_plan(strategy, names, statistics_paths(copied), {}, epochs)
        torch.manual_seed(0)
        batches = Batches.of(data, batch or BatchSpec(10), 0, backend.device, **options)
        found.append((fit(copied, plan, batches, recipe, backend), copied.state_dict()))
    (plain, state), (fast, same) = found
    assert plain.prefixes == []
    assert {name for name, tensor in state.items() if not torch.equal(tensor, same[name])} == set()
    assert (fast.curves, fast.val, fast.test) == (plain.curves, plain.val, plain.test)
    return fast


@pytest.mark.parametrize(
    ("host", "still", "through"),
    [
        (CifarResNet("resnet8", width=4), [*STEM, "layer1", "layer2", "layer3"], "avgpool"),
        (CifarResNet("resnet8", width=4), ["conv1"], "conv1"),
        (CifarResNet("resnet20", width=4), [*STEM, "layer1", "layer2.0"], "layer2.0"),
        (CifarResNet("resnet20", width=4, norm="group", skips=False), [*STEM, "layer1"], "layer1.2"),
        (TorchvisionResNet("resnet18", width=4), [*STEM, "layer1", "layer2"], "layer2.1"),
        (TorchvisionResNet("resnet50", width=4), [*STEM, "layer1", "layer2", "layer3", "layer4"], "avgpool"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("precision", ["float32", "bf16_mixed"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_is_the_plain_training_bit_for_bit(images, host, still, through, precision, channels_last):
    data = images()
    network = host.build(data.shape, data.num_classes, seed=0)
    fitted = both_ways(
        network, *frozen(*still), data, kept=replace(KEPT, precision=precision, channels_last=channels_last)
    )
    (prefix,) = fitted.prefixes
    assert (prefix["epoch"], prefix["through"]) == (0, through)


@pytest.mark.parametrize("operation", [Insert(position="before"), Parallel(), Replace()], ids=lambda one: one.name)
def test_donors_are_links_like_others(images, operation):
    """A frozen donor at a block: what stands before the host's block may belong to the prefix without the block."""
    data, host = images(), CifarResNet("resnet20", width=4)
    network = host.build(data.shape, data.num_classes, seed=0)
    site = find_sites(network, data.shape)["layer2.1"]
    slot = slot_of(network, site, operation, data.shape)
    donor = RandomDonor("random").architecture(slot).build()
    grafted = graft(network, [(site, donor)], operation, data.shape)
    before = [*STEM, "layer1", "layer2.0", *grafted.roles["graft"]]
    fitted = both_ways(grafted.network, *frozen(*before), data)
    through = {"insert": "layer2.1.donor", "parallel": "layer2.0", "replace": "layer2.1"}
    assert fitted.prefixes[0]["through"] == through[operation.name]


def test_an_epoch_may_have_an_image_twice_and_another_not_at_all(images):
    data = replace(images(), class_weights="balanced", sampler="balanced")
    network = CifarResNet("resnet8", width=4).build(data.shape, data.num_classes, seed=0)
    (prefix,) = both_ways(network, *frozen(*STEM, "layer1"), data).prefixes
    assert prefix["through"] == "layer1.0"


def test_each_phase_has_its_own(images, config):
    """hybrid: stem, layer1 and donor, then the donor thaws; its second phase begins at the donor."""
    data, host = images(), CifarResNet("resnet8", width=4)
    strategy = StrategySpec(
        "s",
        groups={"stem": STEM, "one": ["layer1"], "two": ["layer2"], "rest": [".*"]},
        phases={
            "a": PhaseSpec(0, train={"rest": 1.0}, freeze=["stem", "one", "two"]),
            "b": PhaseSpec(2, train={"rest": 1.0, "one": 0.1, "two": 0.1}, freeze=["stem"]),
            "c": PhaseSpec(4, train={"rest": 1.0, "one": 0.1, "two": 0.1, "stem": 0.1}),
            "d": PhaseSpec(6, train={"rest": 1.0}, freeze=["stem", "one", "two"]),
        },
    )
    network = host.build(data.shape, data.num_classes, seed=0)
    fitted = both_ways(network, strategy, 8, data)
    assert [(p["epoch"], p["through"]) for p in fitted.prefixes] == [(0, "layer2.0"), (2, "relu"), (6, "layer2.0")]


@pytest.mark.parametrize("strategy", sorted(path.stem for path in (conf_dir() / "strategy").glob("*.yaml")))
def test_every_strategy_comes_out_the_same(config, strategy, tmp_path):
    """And under the same key: what is kept is no part of a run."""
    from layergraft.runs.plan import plan_run
    from layergraft.runs.train import execute

    common = ["host=resnet8", "host.width=4", "schedule.epochs=5", "donor=random", "data=digits", "data.train_size=60",
              "data.shift=0", "optim.batch_size=20", "exec.device=cpu", f"strategy={strategy}", "site=middle"]  # fmt: skip
    records = [
        execute(plan_run(config(*common, f"exec.outputs={tmp_path / name}", f"exec.features_gib={gib}")))
        for name, gib in (("plain", 0), ("kept", "null"))
    ]
    plain, kept = records
    assert plain.key == kept.key
    assert [record.error for record in records] == ["", ""] and plain.frozen_prefixes == []
    for part in ("metrics", "probes", "plan"):
        assert getattr(plain, part) == getattr(kept, part)
    weights = [(tmp_path / name / "runs" / plain.key / "model.safetensors").read_bytes() for name in ("plain", "kept")]
    assert weights[0] == weights[1]
    assert bool(kept.frozen_prefixes) == (
        strategy in {"head_only", "hybrid", "freeze_early", "surgical", "bn_only", "lp_ft"}
    )


def test_a_run_that_is_cut_off_in_a_phase_goes_on(images, tmp_path, monkeypatch):
    data, host = images(), CifarResNet("resnet8", width=4)
    strategy, epochs = frozen(*STEM, "layer1", epochs=4)
    network = host.build(data.shape, data.num_classes, seed=0)

    def trained(name, resume=None, epochs_to_do=epochs):
        copied = copy.deepcopy(network)
        plan = make_plan(strategy, [n for n, _ in copied.named_parameters()], statistics_paths(copied), {}, epochs)
        batches = Batches.of(data, BatchSpec(10), 0, "cpu")
        (tmp_path / name).mkdir()
        recipe = Recipe(OptimSpec("adam", 1e-2, batch_size=10), ScheduleSpec(epochs=epochs))
        saved = []
        monkeypatch.setattr("layergraft.training.checkpoints.os.replace", lambda a, b: saved.append(a.read_bytes()))
        fitted = fit(copied, plan, batches, recipe, KEPT, saving=CheckpointSettings(tmp_path / name, 0, {}, resume))
        return fitted, copied.state_dict(), saved

    whole, state, saved = trained("whole")
    for number in (1, 6):  # in the middle of an epoch
        middle = tmp_path / f"{number}.ckpt"
        middle.write_bytes(saved[number])
        again, same, _ = trained(f"from {number}", middle)
        assert again.curves == whole.curves
        assert [prefix["epoch"] for prefix in again.prefixes] == [0, number // 4]
        assert all(torch.equal(tensor, same[name]) for name, tensor in state.items())


def test_images_from_the_disk(images):
    network = CifarResNet("resnet8", width=4).build(images().shape, 4, seed=0)
    assert both_ways(network, *frozen(*STEM, "layer1"), images(), gib=0).prefixes


def plain_row(*links):
    return nn.Sequential(*links, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))


class LooksAside(nn.Module):
    """What it gives for an image depends on the others of the batch."""

    def forward(self, x):
        return x - x.mean(0)


class OutOfOrder(nn.Module):
    """Runs its modules in another order than it has them in."""

    def __init__(self):
        super().__init__()
        self.second, self.first, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


class UsedTwice(nn.Module):
    """The head sees what the prefix gives, and what goes into it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def forward(self, x):
        return self.head((self.second(self.first(x)) + x).mean((2, 3)))


class Flattens(nn.Module):
    """What lies between its modules is no module: without the first ones it is given what it cannot take."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(2)
        self.first, self.head = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.first(self.pool(self.conv(x)).flatten(1)))


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 4)
        self.shift = nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, x):
        return self.head(self.second(self.first(x) + self.shift).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "still"),
    [
        (plain_row(nn.Conv2d(3, 3, 3), nn.Dropout(0.5)), ["0"]),
        (plain_row(nn.Conv2d(3, 3, 3), LooksAside()), ["0"]),
        (plain_row(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)), ["0"]),
        (OutOfOrder(), ["first"]),
        (OutOfOrder(), ["second"]),
        (UsedTwice(), ["first"]),
        (OwnParameter(), ["first", "second"]),
        (Flattens(), ["conv", "first"]),
    ],
    ids=["dropout", "of the batch", "no statistics", "first", "second", "used twice", "own parameter", "flattens"],
)
def test_is_let_alone_where_it_would_be_another_training(images, network, still):
    fitted = both_ways(network, *frozen(*still), images())
    # A row's convolution before what looks aside may be kept; what looks aside may not.
    assert all(prefix["through"] == "0" for prefix in fitted.prefixes)


@pytest.mark.parametrize(
    ("options", "epochs", "phase"),
    [
        ({"batch": BatchSpec(10, shift=1)}, 3, {}),
        ({"batch": BatchSpec(10, flip=True)}, 3, {}),
        ({"batch": BatchSpec(10, mixup=0.2)}, 3, {}),
        ({}, 1, {}),
        ({}, 3, {"batch_norm_statistics": ["still", "rest"]}),
        ({"kept": Backend("cpu", "float32", features_gib=1e-6)}, 3, {}),
        ({"kept": Backend("cpu", "float32", features_gib=None, beside=10**9)}, 3, {}),
        ({"ema": True}, 3, {}),
    ],
    ids=["moved", "mirrored", "mixed", "one epoch", "statistics move", "no room", "many beside it", "moving average"],
)
def test_when_nothing_is_kept(images, options, epochs, phase):
    data, options = images(), dict(options)
    network = CifarResNet("resnet8", width=4).build(data.shape, data.num_classes, seed=0)
    regularizer = RegularizerSpec(
        mixup=options["batch"].mixup if "batch" in options else 0.0, ema=0.9 if options.pop("ema", False) else None
    )
    recipe = Recipe(OptimSpec("adam", 1e-2, batch_size=10), ScheduleSpec(epochs=epochs), regularizer)
    strategy, _ = frozen(*STEM, "layer1", epochs=epochs, **phase)
    fitted = both_ways(network, strategy, epochs, data, recipe=recipe, **options)
    # The convolution that stands before the first norm holds still whatever statistics do.
    assert [prefix["through"] for prefix in fitted.prefixes] == (["conv1"] if phase else [])


def test_averages_over_epochs_see_images_again(images):
    """Batch norms are measured anew at the end, by the whole network."""
    data = images()
    network = CifarResNet("resnet8", width=4).build(data.shape, data.num_classes, seed=0)
    recipe = Recipe(OptimSpec("adam", 1e-2, batch_size=10), ScheduleSpec(epochs=4), RegularizerSpec(swa=0.5))
    assert both_ways(network, *frozen(*STEM, "layer1", epochs=4), data, recipe=recipe).prefixes


class Stop(pl.Callback):
    def __init__(self):
        self.dataloaders = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.module, self.dataloaders = pl_module, [trainer.train_dataloader, trainer.val_dataloaders]
        assert pl_module.behind_prefix is not None and all(each.features is not None for each in self.dataloaders)
        raise Diverged("now")


def test_nothing_is_left_of_it_where_training_breaks_off(images):
    data, stop = images(), Stop()
    network = CifarResNet("resnet8", width=4).build(data.shape, data.num_classes, seed=0)
    strategy, epochs = frozen(*STEM)
    plan = make_plan(strategy, [n for n, _ in network.named_parameters()], statistics_paths(network), {}, epochs)
    recipe = Recipe(OptimSpec(batch_size=10), ScheduleSpec(epochs=epochs))
    kept = replace(KEPT, channels_last=True)
    with pytest.raises(Diverged):
        fit(network, plan, Batches.of(data, BatchSpec(10), 0, "cpu"), recipe, kept, callbacks=[stop])
    assert stop.module.behind_prefix is None and [each.features for each in stop.dataloaders] == [None, None]
    assert all(tensor.is_contiguous() for tensor in network.state_dict().values())


def test_what_is_compiled_is_compiled_as_a_whole():
    recipe = Recipe(OptimSpec(), ScheduleSpec(epochs=3))
    assert _keeps_features(KEPT, recipe)
    assert not _keeps_features(replace(KEPT, compile=True), recipe)
    assert not _keeps_features(replace(KEPT, devices=2), recipe)


def test_the_rest_of_a_network_shares_its_modules():
    network = CifarResNet("resnet8", width=4).build((3, 16, 16), 4, seed=0)
    tail = without(network, ["conv1", "bn1", "relu", "layer1.0"])
    assert dict(chain(tail))["layer2.0"] is network.layer2[0]
    assert isinstance(tail.layer1[0], nn.Identity) and not isinstance(network.layer1[0], nn.Identity)
    assert prefix_of(network) == []  # everything learns
    assert CPU.features_gib == 0
