"""The command line: what each command takes (`commands`), what it shows of one run (`run_commands`), its help (`help`)."""

from layergraft.cli.commands import main

__all__ = ["main"]
