"""A run that goes on from any of its checkpoints ends with the bits of the run that was never stopped."""

import copy
import shutil

import pytest
import torch
from torch import nn

from conftest import CPU
from layergraft.config.compose import conf_dir
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
from layergraft.hosts.sites import find_sites
from layergraft.strategies.phases import make_plan, stage_roles
from layergraft.surgery import Replace, graft
from layergraft.training.checkpoints import Checkpoints, facts_of
from layergraft.training.fit import CheckpointSettings, fit
from layergraft.training.recipe import Recipe

EPOCHS, STEPS = 4, 2
HOST = CifarResNet("resnet8", width=4)
SGD = OptimSpec("sgd", 0.05, weight_decay=0.01, batch_size=10)
ADAMW = OptimSpec("adamw", 0.01, weight_decay=0.1, batch_size=10)
COSINE = ScheduleSpec("cosine", EPOCHS)
WARM = ScheduleSpec("constant", EPOCHS, warmup=1.5)


class Experiment:
    """One training, as often as it is asked for, from scratch or from a checkpoint."""

    def __init__(
        self, data, folder, monkeypatch, strategy, optim, schedule, regularizer=None, dropout=0.0, backend=CPU
    ):
        self.backend = backend
        self.data, self.folder, self.strategy = data, folder, strategy
        self.recipe = Recipe(optim, schedule, regularizer or RegularizerSpec())
        self.dropout = dropout
        host = HOST.build(data.shape, data.num_classes, seed=0)
        torch.manual_seed(3)
        donor = nn.Conv2d(6, 8, 3, padding=1)
        site = find_sites(host, data.shape)["layer2.0.conv2"]
        self.grafted = graft(
            host, [(site, donor)], Replace(channel_matching="project", adapter_init="random"), data.shape
        )
        folder.mkdir()
        self.saved = saved = []
        plain = Checkpoints._save

        def save_and_keep(callback, trainer, module):
            plain(callback, trainer, module)
            shutil.copy(callback.path, folder / f"{len(saved)}.ckpt")
            saved.append((folder / f"{len(saved)}.ckpt", trainer.current_epoch, trainer.global_step))

        monkeypatch.setattr(Checkpoints, "_save", save_and_keep)
        self.monkeypatch = monkeypatch

    def __call__(self, resume=None):
        network = copy.deepcopy(self.grafted.network)
        if self.dropout:
            network.fc = nn.Sequential(nn.Dropout(self.dropout), network.fc)
        roles = {
            **HOST.roles,
            **stage_roles(["layer1", "layer2"]),
            **self.grafted.roles,
            "norm": norm_paths(network),
            "before": ["conv1"],
            "after": ["layer3"],
        }
        names = [name for name, _ in network.named_parameters()]
        plan = make_plan(self.strategy, names, statistics_paths(network), roles, EPOCHS)
        spec = BatchSpec(10, self.recipe.optim.accumulate, 1, self.recipe.regularizer.mixup)
        batches = Batches.of(self.data, spec, 0, self.backend.device)
        saving = CheckpointSettings(self.folder, 0 if resume is None else 1e9, {"run": 1}, resume)
        torch.manual_seed(5)
        fitted = fit(network, plan, batches, self.recipe, self.backend, saving=saving)
        return fitted, network.state_dict()


def require_exact_from_every_checkpoint(experiment, num_checkpoints=EPOCHS * STEPS):
    fitted, state = experiment()
    saved = list(experiment.saved)
    assert len(saved) == num_checkpoints  # after each step but an epoch's last, and at each epoch's end
    for path, epoch, step in saved:
        again, resumed = experiment(path)
        assert again.curves == fitted.curves, f"from epoch {epoch}, step {step}"
        assert again.summary() == fitted.summary()
        different = [name for name in state if not torch.equal(state[name], resumed[name])]
        assert not different, f"from epoch {epoch}, step {step}"
    assert len(experiment.saved) == num_checkpoints


@pytest.fixture
def experiment(images, tmp_path, monkeypatch):
    def make(strategy, optim=SGD, schedule=COSINE, steps=STEPS, **more):
        data = images(channels=1, size=8)
        data = type(data)(data.train.take(range(10 * steps + 5)), data.val, data.test, data.num_classes, "r")
        return Experiment(data, tmp_path / "checkpoints", monkeypatch, strategy, optim, schedule, **more)

    return make


STRATEGIES = sorted(path.stem for path in (conf_dir() / "strategy").glob("*.yaml"))


@pytest.mark.parametrize("optim, schedule", [(SGD, COSINE), (ADAMW, WARM)], ids=["sgd-cosine", "adamw-warmup"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_from_every_checkpoint(name, optim, schedule, experiment, config):
    strategy = config(f"strategy={name}", f"schedule.epochs={EPOCHS}").strategy
    if name == "surgical":
        strategy.groups["tuned"] = ["layer2"]
    require_exact_from_every_checkpoint(experiment(strategy, optim, schedule))


ALL = StrategySpec("all", groups={"all": [".*"]}, phases={"p": PhaseSpec(0, {"all": 1.0})})
WAITING = StrategySpec(
    "waiting",
    groups={"head": ["head"], "rest": [".*"]},
    phases={
        "head": PhaseSpec(0, {"head": 1.0}, ["rest"]),
        "all": PhaseSpec(3, {"head": 1.0, "rest": 0.1}, plateau=PlateauSpec("val/acc", 1, 1000.0)),
    },
)
REST = {
    "ema": {"regularizer": RegularizerSpec(ema=0.9)},
    "swa": {"regularizer": RegularizerSpec(swa=0.5)},
    "mixup and smoothing": {"regularizer": RegularizerSpec(mixup=0.4, label_smoothing=0.1)},
    "a network that draws": {"dropout": 0.5, "steps": 3},
    "one-cycle": {"schedule": ScheduleSpec("one_cycle", EPOCHS, pct_start=0.3)},
    "step": {"schedule": ScheduleSpec("step", EPOCHS, step_epochs=1, gamma=0.5)},
    "adagrad": {"optim": OptimSpec("adagrad", 0.01, batch_size=10)},
    "clipped": {"optim": OptimSpec("rmsprop", 0.01, batch_size=10, clip_norm=0.1)},
    "a plateau": {"strategy": WAITING, "schedule": ScheduleSpec("constant", EPOCHS)},
    "stopped early": {"schedule": ScheduleSpec("constant", EPOCHS, early_stopping=PlateauSpec("val/acc", 2, 1000.0))},
}


@pytest.mark.parametrize("what", REST)
def test_everything_else_from_every_checkpoint(what, experiment):
    made = experiment(**{"strategy": ALL, **REST[what]})
    epochs = 3 if what == "stopped early" else EPOCHS
    require_exact_from_every_checkpoint(made, epochs * REST[what].get("steps", STEPS))


def test_accumulated_batches_are_resumed_between_steps(experiment):
    made = experiment(ALL, OptimSpec("sgd", 0.05, batch_size=10, accumulate=3), steps=3)
    require_exact_from_every_checkpoint(made, EPOCHS)  # one step an epoch


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"hello"])
def test_what_is_no_checkpoint_is_said_to_be_none(content, tmp_path):
    path = tmp_path / "x.ckpt"
    with pytest.raises(UserError, match="there is no checkpoint"):
        facts_of(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match="x.ckpt is not a whole checkpoint of a run of layergraft") as error:
        facts_of(path)
    assert "\n" not in str(error.value)


def test_groups_in_another_order_are_refused(experiment):
    made = experiment(WAITING)
    made()
    path = made.saved[0][0]
    made.strategy = StrategySpec("turned", groups={"rest": ["layer.*", "conv.*", "bn.*"], "head": ["head"]},
                                 phases={"p": PhaseSpec(0, {"rest": 1.0, "head": 1.0})})  # fmt: skip
    with pytest.raises(UserError, match="the checkpoint's parameter groups are"):
        made(path)
