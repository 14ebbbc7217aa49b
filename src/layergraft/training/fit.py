"""One network trained by one plan, with Lightning."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.profilers import PassThroughProfiler
from torch import Tensor, nn

from layergraft.strategies.phases import TrainingPlan
from layergraft.training.backend import Backend
from layergraft.training.checkpoints import CHECKPOINT, Checkpoints
from layergraft.training.lightning_module import Diverged, PlannedModule
from layergraft.training.prefix_cache import FrozenPrefix, Kept
from layergraft.training.recipe import Recipe
from layergraft.training.unfreeze import UnfreezeByPhase
from layergraft.training.weight_averaging import Averages

LIGHTNING = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")  # its loggers
NEEDLESS_WARNINGS = (
    "GPU available but not used",  # exec=cpu asks for that
    # The batches are made on the device: there are no workers to add, and nothing is logged within an epoch.
    ".*does not have many workers.*",
    ".*number of training batches.*smaller than the logging interval.*",
    ".*LeafSpec.*",  # Lightning 2.6 uses what torch 2.15 deprecates
    ".*`srun` command is available.*",  # wherever SLURM is installed
    ".*in eval mode at the start of training.*",  # what is frozen is
)


class Batches(Protocol):
    """What `fit` asks of data: iterables of `(x_NCHW float, y_N)` that lie on the device already, with their `task`.

    `train` has a length, `steps_per_epoch` of the optimizer, `class_weights` of its loss (or None), `of_epoch(epoch)`, which
    gives the batches of any epoch, and, for more than one device, `share_out(rank, num_ranks)`; what `training.prefix` asks is asked where
    `backend.features_gib` is not 0.
    """

    @property
    def train(self) -> Any: ...

    @property
    def val(self) -> Any: ...

    @property
    def test(self) -> Any: ...


@dataclass(frozen=True)
class CheckpointSettings:
    """Whether and where checkpoints are written, and which one to go on from."""

    folder: Path
    every: float | None = None  # seconds between two; 0: after every step; None: as often as costs 2% of the time
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the run is; a checkpoint of another is not for it
    resume: Path | None = None


@dataclass
class Fitted:
    """What came of training: one point an epoch (from 0), and the test split read once, after the last."""

    curves: list[dict[str, float]]
    val: dict[str, float]
    """The metrics of the task, of the network as it is kept: an average of weights where one was asked for."""
    test: dict[str, float]
    test_logits: Tensor
    """(N, C) float32 on the CPU, in the order of the split; `test` is of them."""
    epochs: int  # as planned; early stopping may have ended training sooner
    prefixes: list[dict[str, Any]] = field(default_factory=list)
    """What a frozen prefix gave that was kept: from which `epoch` on, `through` which module, `bytes`."""

    def summary(self) -> dict[str, float]:
        """The metrics that runs are compared by, without those that are not defined for these labels.

        `val/aulc` is the area under the learning curve: the mean validation accuracy over the planned epochs, the last
        one standing for those that early stopping has saved.
        """
        accuracies = [point["val/acc"] for point in self.curves]
        accuracies += accuracies[-1:] * (self.epochs - len(accuracies))
        others = {f"{split}/{name}": v for split in ("test", "val") for name, v in getattr(self, split).items()}
        return {
            **{name: value for name, value in others.items() if math.isfinite(value)},
            "val/aulc": sum(accuracies) / len(accuracies),
            "train/loss": self.curves[-1]["train/loss"],
        }


class EventsLogger(TensorBoardLogger):
    """TensorBoard events alone, straight in the folder: a run's config is in its own file, not in hparams.yaml."""

    def __init__(self, folder: Path, **of_the_writer: Any) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False, **of_the_writer)

    def save(self) -> None:
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Lightning ends a logger after each fit and test; one file is to hold all, in the order of steps."""
        self.save()

    def close(self) -> None:
        self.experiment.close()


class _Unprofiled(PassThroughProfiler):
    """Lightning's own makes a context anew for each of the 30 things that it would time in a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


class Probe(Protocol):
    """What looks at a network after some epochs and writes what it saw to `points`; it may not move anything."""

    points: list[dict[str, Any]]

    def look(self, module: PlannedModule, epochs_done: int) -> None: ...

    def log_again(self, module: PlannedModule) -> None: ...


class _Look(pl.Callback):
    """Has the probe look before the first step and at the end of each epoch; which of them it takes is its affair."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.probe.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.probe.points[:] = state_dict["points"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        if trainer.global_step == 0:
            self.probe.look(pl_module, 0)
        else:
            self.probe.log_again(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        self.probe.look(pl_module, trainer.current_epoch + 1)


def _keeps_features(backend: Backend, recipe: Recipe) -> bool:
    """Not where a moving average is validated, whose prefix is another; not for several devices; not compiled, since what is
    compiled as a whole has other last bits than its parts."""
    plain = backend.devices == 1 and not backend.compile
    return backend.features_gib != 0 and plain and recipe.regularizer.ema is None


def _resumed_epoch(checkpoint: Path | None) -> int | None:
    """From which step on the events in the folder are of a run that was cut off; None where none are."""
    if checkpoint is None:
        return None
    return len(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["layergraft"]["curves"])


@contextmanager
def _quietly() -> Iterator[None]:
    """Within, Lightning warns of nothing that is meant to be so."""
    for name in LIGHTNING:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in NEEDLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


@_quietly()
def fit(
    network: nn.Module,
    plan: TrainingPlan,
    batches: Batches,
    recipe: Recipe,
    backend: Backend,
    *,
    folder: Path | None = None,
    saving: CheckpointSettings | None = None,
    probe: Probe | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> Fitted:
    """Train `network` in place and judge it on the test batches once.

    TensorBoard events go to `folder`. With `saving`, checkpoints are written and training goes on from one. Over several
    devices (`backend.devices`) this is what each process does for its part of the batches; `training.ranks.fit` starts
    them. Raises `training.module.Diverged` when the loss stops being finite.
    """
    schedule, optim, regularizer = recipe.schedule, recipe.optim, recipe.regularizer
    backend.lay_out(network)
    steps, task = batches.train.steps_per_epoch, batches.val.task
    weights = batches.train.class_weights
    module = PlannedModule(network, plan, optim, schedule, regularizer, steps, backend.compile, task, weights)
    is_averaged = regularizer.ema is not None or regularizer.swa is not None
    averages = Averages(network, regularizer, schedule.epochs) if is_averaged else None
    prefix = FrozenPrefix(backend.features_gib, backend.beside) if _keeps_features(backend, recipe) else None
    checkpoints = Checkpoints(saving.folder / CHECKPOINT, saving.every, saving.facts) if saving else None
    resume = saving.resume if saving else None
    logger = EventsLogger(folder, purge_step=_resumed_epoch(resume)) if folder is not None else None
    # The order matters: phases first; what is saved at the end of an epoch is what all others have left.
    own = [UnfreezeByPhase(), prefix, averages, _Look(probe) if probe else None, *callbacks, checkpoints]
    on_gpu = backend.device == "cuda"
    strategy: Any = "auto"
    if backend.devices > 1:  # parameters are frozen and thawed on the way, so all are registered and some are not used
        group = "nccl" if on_gpu else "gloo"
        strategy = pl.strategies.DDPStrategy(find_unused_parameters=True, process_group_backend=group)
    trainer = pl.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=backend.devices,
        strategy=strategy,
        precision="32-true" if backend.precision == "float32" else "bf16-mixed",
        max_epochs=schedule.epochs,
        accumulate_grad_batches=optim.accumulate,
        gradient_clip_val=optim.clip_norm,
        # Lightning would take a run in a SLURM job for a step of its own, and requeue the job by itself.
        plugins=[LightningEnvironment()],
        logger=logger or False,
        profiler=_Unprofiled(),
        callbacks=[callback for callback in own if callback is not None],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    try:
        with backend.arithmetic():
            trainer.fit(
                module, batches.train, Kept(batches.val), ckpt_path=resume, weights_only=True if resume else None
            )
            network.to(backend.device)  # Lightning takes it to the CPU when it is done
            network.zero_grad()  # nobody wants the last step's any more
            val = {name[4:]: value for name, value in module.curves[-1].items() if name.startswith("val/")}
            if averages is not None:
                averages.finish(module, batches.train.of_epoch(schedule.epochs))
                trainer.validate(module, batches.val, verbose=False)
                network.to(backend.device)
                val = module.evaluated()
            if probe is not None:
                trainer.strategy.optimizers = []  # their state takes as much as two networks, beside the look's own
                probe.look(module, -1)
            trainer.test(module, batches.test, verbose=False)
    finally:
        network.to(memory_format=torch.contiguous_format)
        if logger is not None:
            logger.close()
    test = module.evaluated()
    if not math.isfinite(test["loss"]):
        raise Diverged(f"the test loss is {test['loss']}")
    return Fitted(module.curves, val, test, module.logits(), schedule.epochs, prefix.used if prefix else [])
