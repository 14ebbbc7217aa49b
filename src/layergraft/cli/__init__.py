"""The command line: what each command takes (`commands`), what it shows of one run before training
(`inspection_commands`), the training of one (`training_commands`), its help (`help`)."""

from layergraft.cli.commands import main

__all__ = ["main"]
