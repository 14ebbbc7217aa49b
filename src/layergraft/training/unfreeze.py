"""The callback that moves a run through the phases of its plan."""

from __future__ import annotations

import pytorch_lightning as pl

from layergraft.training.module import PlannedModule


class UnfreezeByPhase(pl.Callback):
    """Applies the phase of the current epoch when training starts and at each epoch.

    Both, since Lightning leaves the epoch's hook out where it resumes in mid-epoch. Nothing is kept from epoch to
    epoch: what is frozen is a function of the epoch.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        pl_module.apply_phase(pl_module.plan.phase(trainer.current_epoch))
