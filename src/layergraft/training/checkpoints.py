"""Checkpoints of a run in training: where it can go on from, bit for bit, should it be interrupted."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from layergraft.errors import UserError
from layergraft.store.files import require_regular, require_unpacked
from layergraft.training.lightning_module import Diverged, PlannedModule

CHECKPOINT = "last.ckpt"
FACTS = "layergraft facts"  # the key in the file
COST = 50  # a checkpoint is due when this many times as long has passed as the last one took: 2% of the time
AGREE = 50  # steps between two questions to rank 0 whether one is due
SOONEST = 60.0  # seconds before one is due in mid-epoch, unless they are asked for more often


class Checkpoints(pl.Callback):
    """Writes `path` at the end of an epoch, or of a step, when one is due: after `every` seconds (0: always) or, for
    None, at the first epoch's end and then as often as costs 2% of the time.

    Nothing is written once a loss or a weight is not finite, so that the last good checkpoint stays. Raises Diverged
    where it finds such a loss.
    """

    def __init__(self, path: Path, every: float | None, facts: Mapping[str, Any]) -> None:
        self.path, self.every, self.facts = path, every, facts
        self.cost = 0.0  # seconds
        self.last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: PlannedModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        at_the_end = batch_idx + 1 == trainer.num_training_batches  # then the epoch's end will do it
        agree = trainer.world_size == 1 or self.every == 0 or trainer.global_step % AGREE == 0
        if pl_module.has_stepped and not at_the_end and agree and self._is_due(trainer, mid_epoch=True):
            loss = pl_module.mean_loss()
            if not math.isfinite(loss):
                raise Diverged(f"the training loss is {loss} in epoch {trainer.current_epoch}")
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        if self._is_due(trainer, mid_epoch=False):
            self._save(trainer, pl_module)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: PlannedModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[FACTS] = dict(self.facts)

    def _is_due(self, trainer: pl.Trainer, mid_epoch: bool) -> bool:
        waited = time.perf_counter() - self.last
        soonest = max(COST * self.cost, SOONEST if mid_epoch else 0.0)
        due = waited >= (soonest if self.every is None else self.every)
        return trainer.strategy.broadcast(due) if trainer.world_size > 1 else due  # all ranks save, or none

    def _save(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        tensors = [t for t in pl_module.network.state_dict().values() if t.is_floating_point()]
        if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
            return
        start = time.perf_counter()
        # Of this process alone: one that has lost its lease to the run may still be writing.
        unfinished = self.path.with_name(f".{self.path.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            trainer.save_checkpoint(unfinished)
            if trainer.is_global_zero:
                os.replace(unfinished, self.path)
        finally:
            unfinished.unlink(missing_ok=True)
        self.last = time.perf_counter()
        self.cost = self.last - start


def facts_of(path: Path) -> dict[str, Any]:
    """What the run was that wrote this checkpoint. Raises UserError for a file that is no checkpoint of a run."""
    require_regular(path, "a checkpoint")
    try:
        require_unpacked(path)
        facts = torch.load(path, map_location="cpu", weights_only=True, mmap=True)[FACTS]
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except UserError:
        raise
    except Exception:  # whatever a file of another kind or cut short makes torch raise
        facts = None
    if not isinstance(facts, Mapping):
        raise UserError(f"{path} is not a whole checkpoint of a run of layergraft")
    return dict(facts)
