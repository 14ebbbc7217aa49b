"""One run or one donor from the command line, with what a person sees of it."""

from __future__ import annotations

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from layergraft.donors import TrainedDonor
from layergraft.errors import RunFailed, UserError
from layergraft.runs.run import assemble, checked, execute, outputs_of
from layergraft.specs import Config
from layergraft.store import run_folder
from layergraft.training.fit import Backend


class _EpochBar(pl.Callback):
    """A bar over the epochs with the last validation accuracy; nothing where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("epoch"), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.description}"),
                   TextColumn("left"), TimeRemainingColumn())  # fmt: skip
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.task = self.progress.add_task("", total=trainer.max_epochs)
        self.progress.start()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        accuracy = pl_module.curves[-1]["val/acc"]
        self.progress.update(self.task, advance=1, description=f"validation {accuracy:.1f}%")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.progress.stop()


def train_one(config: Config) -> float | None:
    """Do the run and say what came of it; the validation accuracy in percent, None where there is none.

    Raises RunFailed where the run failed.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    record = execute(config, [_EpochBar(console)])
    folder = run_folder(outputs_of(config), record["key"])
    console.print(f"run:         {folder}", markup=False)
    if record["status"] != "completed":
        raise RunFailed(f"the run {record['status']}: {record['error']} (see {folder / 'record.json'})")
    metrics = record["metrics"]
    console.print(f"accuracy:    test {metrics['test/acc']:.1f}%, validation {metrics['val/acc']:.1f}%")
    console.print(f"TensorBoard: tensorboard --logdir {folder.parent}", markup=False)
    return metrics["val/acc"]


def donate_one(config: Config) -> None:
    """Train the donor of this run, or find it, and print its key and its accuracy on its own task."""
    if not isinstance(config.donor, TrainedDonor):
        raise UserError(f"donor={config.donor.name} is not trained, so there is nothing to store; donor=trained is")
    checked(config)
    donor = assemble(config, Backend.resolve(config.exec.device, config.precision)).donor
    print(donor.provenance["key"])
    accuracy = donor.provenance["metrics"]["test/acc"]
    folder = outputs_of(config) / "donors" / donor.provenance["key"]
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"{accuracy:.1f}% on its own task; in {folder}", markup=False
    )
