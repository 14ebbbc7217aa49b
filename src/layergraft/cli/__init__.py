"""The command line: what each command takes (`commands`), what it shows of one run (`show`), its help (`help`)."""

from layergraft.cli.commands import main

__all__ = ["main"]
