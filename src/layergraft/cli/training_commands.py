"""One run, host or donor trained from the command line, with what a person sees of it."""

from __future__ import annotations

from typing import cast

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from layergraft.cli.inspection_commands import about, host_line, pretrained_line
from layergraft.config.schema import Config
from layergraft.errors import RunFailed, UserError, require
from layergraft.runs.build import discard_made, get_donors, get_host, head_note
from layergraft.runs.plan import plan_run, precision_note
from layergraft.runs.train import execute
from layergraft.store.records import RECORD
from layergraft.training.lightning_module import PlannedModule


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
        accuracy = cast(PlannedModule, pl_module).curves[-1]["val/acc"]  # the module that is trained
        done = trainer.current_epoch + 1
        self.progress.update(self.task, completed=done, description=f"validation {accuracy:.1f}%")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.progress.stop()


def train_one(config: Config) -> float | None:
    """Do the run, say what came of it, return the validation accuracy in percent, or None. Raises RunFailed."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    plan = plan_run(config)
    if note := precision_note(plan):
        console.print(note, markup=False)
    if note := head_note(plan):
        console.print(note, markup=False)
    for note in plan.notes:
        console.print(f"warning:     {note}", markup=False)
    if config.exec.rerun:
        discard_made(plan)
    record = execute(plan, [_EpochBar(console)])
    for note in record.notes:
        if note not in plan.notes:
            console.print(f"warning:     {note}", markup=False)
    console.print(f"run:         {plan.folder}", markup=False)
    if record.host:
        console.print(f"host:        {host_line(config.host.name, record.host)}", markup=False)
    if record.status != "completed":
        raise RunFailed(f"the run {record.status}: {record.error} (see {plan.folder / RECORD})")
    metrics = record.metrics
    console.print(f"accuracy:    test {metrics['test/acc']:.1f}%, validation {metrics['val/acc']:.1f}%")
    console.print(f"TensorBoard: tensorboard --logdir {plan.folder.parent}", markup=False)
    return metrics["val/acc"]


def pretrain_one(config: Config) -> None:
    """Pretrain the host of this run, or find it; print its key, and how good it is."""
    chosen = "host.pretrain.data is none, so there is nothing to train; host.pretrain.data=DATA chooses a data set"
    require(config.host.weights is None, "host.weights gives the host its weights; leave it out to pretrain the host")
    require(config.host.is_pretrained, chosen)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    plan = plan_run(config)
    if config.exec.rerun:
        discard_made(plan)
    facts = get_host(plan)
    print(facts["network"])
    console.print(pretrained_line(config.host.name, facts), markup=False)
    console.print(f"in {plan.outputs / 'networks' / facts['network']}", markup=False)


def donate_one(config: Config) -> None:
    """Make the donors of this run, or find them; print their keys, and what is known of them."""
    if not config.donor.is_layer:
        raise UserError("donor=none is no donor, so there is nothing to store; `layergraft train --help` lists donors")
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    plan = plan_run(config)
    if config.exec.rerun:
        discard_made(plan)
    for donor in get_donors(plan):
        print(donor.key)
        for line in about(donor):
            console.print(line, markup=False)
        console.print(f"in {plan.outputs / 'donors' / donor.key}", markup=False)
