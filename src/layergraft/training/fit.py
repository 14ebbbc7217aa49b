"""One network trained by one plan, with Lightning."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn

from layergraft.specs import Device, OptimSpec, Precision, ScheduleSpec
from layergraft.strategies import Plan
from layergraft.training.module import Diverged, PlannedModule, require_device
from layergraft.training.unfreeze import UnfreezeByPhase


class Batches(Protocol):
    """What `fit` asks of data: iterables of `(x_NCHW float, y_N int64)` that lie on the device already."""

    train: Iterable[tuple[Tensor, Tensor]]
    val: Iterable[tuple[Tensor, Tensor]]
    test: Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Backend:
    """Where and in what arithmetic to train, after `auto` has been resolved: cpu or cuda, float32 or bf16_mixed."""

    device: str
    precision: str

    @classmethod
    def resolve(cls, device: Device, precision: Precision) -> Backend:
        """Raises UserError where CUDA is asked for and there is none."""
        name = device.name
        if device is Device.auto:
            name = "cuda" if torch.cuda.is_available() else "cpu"
        require_device(name)
        if precision is Precision.auto:
            precision = Precision.bf16_mixed if name == "cuda" else Precision.float32
        return cls(name, precision.name)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Within, float32 on CUDA is float32: cuDNN's default would make convolutions 10-bit (TF32)."""
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = before and self.precision != "float32"
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = before


@dataclass
class Fitted:
    """What came of training: one point an epoch (from 0), and the test split read once, after the last."""

    curves: list[dict[str, float]]
    test_loss: float
    test_acc: float
    """Percent."""

    def summary(self) -> dict[str, float]:
        """The figures that runs are compared by; accuracies in percent.

        `val/aulc` is the area under the learning curve: the mean validation accuracy over the epochs.
        """
        accuracies = [point["val/acc"] for point in self.curves]
        return {
            "test/acc": self.test_acc,
            "test/loss": self.test_loss,
            "val/acc": accuracies[-1],
            "val/aulc": sum(accuracies) / len(accuracies),
            "train/loss": self.curves[-1]["train/loss"],
        }


class EventsLogger(TensorBoardLogger):
    """TensorBoard events alone, straight in the folder: a run's config is in its own file, not in hparams.yaml."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)

    def save(self) -> None:
        self.experiment.flush()


def fit(
    network: nn.Module,
    plan: Plan,
    batches: Batches,
    *,
    optim: OptimSpec,
    schedule: ScheduleSpec,
    backend: Backend,
    folder: Path | None = None,
    hparams: Mapping[str, str | int] | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> Fitted:
    """Train `network` in place for `schedule.epochs` epochs and judge it on the test batches once.

    TensorBoard events go to `folder`, with `hparams` and the summary for its HParams tab at the end. Raises `training.module.Diverged` when the loss stops being finite.
    """
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    module = PlannedModule(network, plan, optim, schedule)
    logger = EventsLogger(folder) if folder is not None else None
    trainer = pl.Trainer(
        accelerator="gpu" if backend.device == "cuda" else "cpu",
        devices=1,
        precision={"float32": "32-true", "bf16_mixed": "bf16-mixed"}[backend.precision],
        max_epochs=schedule.epochs,
        logger=logger or False,
        callbacks=[UnfreezeByPhase(), *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings(), backend.arithmetic():
        # The batches are made on the device: there are no workers to add, and nothing is logged within an epoch.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 uses what torch 2.15 deprecates
        trainer.fit(module, batches.train, batches.val)
        trainer.test(module, batches.test, verbose=False)
    test_loss, test_acc = module.evaluated()
    if not math.isfinite(test_loss):
        raise Diverged(f"the test loss is {test_loss}")
    fitted = Fitted(module.curves, test_loss, test_acc)
    if logger is not None:
        if hparams is not None:
            # Under names of their own: TensorBoard keeps these as scalars too, at step 0, amid a curve of that name.
            final = {f"final/{name.replace('/', '_')}": value for name, value in fitted.summary().items()}
            logger.log_hyperparams(dict(hparams), final)
        logger.finalize("success")
    return fitted
