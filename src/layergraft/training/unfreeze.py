"""The callback that moves a run through the phases of its plan."""

from __future__ import annotations

import pytorch_lightning as pl

from layergraft.training.lightning_module import PlannedModule
from layergraft.training.optimizers import lay_out_state


class UnfreezeByPhase(pl.Callback):
    """Applies the phase of the current epoch when training starts and at each epoch; stops training on a plateau.

    Both, since Lightning leaves the epoch's hook out where it resumes in mid-epoch. Nothing is kept from epoch to
    epoch: what is frozen is a function of the epoch and of the curves.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        lay_out_state(trainer.optimizers[0])
        self.on_train_epoch_start(trainer, pl_module)
        self.on_train_epoch_end(trainer, pl_module)  # stopped early, then resumed: there is nothing left to do

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        phase = pl_module.plan.phase(trainer.current_epoch, pl_module.curves)
        pl_module.apply_phase(phase, trainer.optimizers[0])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        trainer.should_stop = pl_module.plan.is_over(pl_module.schedule.early_stopping, pl_module.curves)
