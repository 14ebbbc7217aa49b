"""How far a sweep is, by what is in the store: whoever does it, wherever. Imports no torch."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from layergraft.errors import counted
from layergraft.store.files import modified
from layergraft.store.leases import leased
from layergraft.store.records import DONE, LEASES, RECORD, run_folder, status_of
from layergraft.store.sweep_folder import SWEEP, read_sweep, rerun_since

INTERVAL = 2.0  # seconds
RECENT = 20  # runs whose ends tell the pace


@dataclass(frozen=True)
class Status:
    """How far a sweep is, in runs."""

    total: int
    done: int
    """Completed, or diverged."""
    failed: int
    running: int
    waiting: int
    """Among them those that were interrupted and go on from a checkpoint."""
    per_minute: float | None
    """Runs that ended in a minute, of late; None where fewer than two did."""
    donors: int
    """That somebody makes now, for this sweep or another of the same store."""
    troubled: dict[str, str]
    """Key -> status of what failed or diverged."""

    @property
    def left(self) -> int:
        """Runs that have not ended."""
        return self.running + self.waiting

    def __str__(self) -> str:
        parts = [f"{name} {getattr(self, name)}" for name in ("done", "running", "failed", "waiting")]
        parts[-1] += f" of {counted(self.total, 'run')}"
        if self.left and self.donors:
            parts.append(f"{counted(self.donors, 'donor')} in the making")
        if self.left and self.per_minute and (self.running or self.donors):  # else what the pace was says nothing
            seconds = 60 * self.left / self.per_minute
            parts += [f"{self.per_minute:.3g} runs a minute", f"about {duration(seconds)} left"]
        return ", ".join(parts)


def status(folder: Path) -> Status:
    """Of the sweep in `folder`. Raises UserError where there is none."""
    keys = read_sweep(folder)["runs"]
    outputs = folder.resolve().parents[1]
    since = rerun_since(folder)
    now, started = _now(folder), (folder / SWEEP).stat().st_mtime
    alive = leased(outputs / LEASES, now)
    folders = {key: run_folder(outputs, key) for key in keys}
    statuses = {key: "running" if key in alive else status_of(at, since) for key, at in folders.items()}
    times = [at for folder in folders.values() if (at := modified(folder / RECORD)) > max(started, since)]
    recent = sorted(times)[-RECENT:]
    number = Counter(statuses.values())
    done, failed, running = sum(number[name] for name in DONE), number["failed"], number["running"]
    return Status(
        total=len(keys),
        done=done,
        failed=failed,
        running=running,
        waiting=len(keys) - done - failed - running,
        per_minute=60 * len(recent) / (now - recent[0]) if len(recent) > 1 and now > recent[0] else None,
        donors=sum(name.endswith(".lease") for name in leased(outputs / "donors", now)),
        troubled={key: name for key, name in statuses.items() if name in ("failed", "diverged")},
    )


def _now(folder: Path) -> float:
    """Of the disk's clock, which may not be this machine's; of this machine's where nothing can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def duration(seconds: float) -> str:
    """90 -> 2 min; 5400 -> 1 h 30 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def show(folder: Path, watch: bool) -> None:
    """Print how far the sweep is; with `watch`, again every 2 seconds until nothing runs or waits."""
    console = Console(soft_wrap=True, highlight=False)
    if watch:
        follow(folder, lambda: status(folder).left > 0, console)
    now = status(folder)
    if not watch or not console.is_terminal:
        console.print(str(now))
    if now.waiting and not now.running + now.donors:
        console.print(f"  nothing runs now; to go on: {read_sweep(folder)['command']}", markup=False)
    for key, name in now.troubled.items():
        console.print(f"  {name:<8}  {key}", markup=False)


def follow(folder: Path, going: Callable[[], bool], console: Console | None = None, interval: float = INTERVAL) -> None:
    """Show how far the sweep is for as long as it is `going`: in a terminal on one line, else a line for each tenth."""
    console = console or Console(stderr=True, soft_wrap=True, highlight=False)
    tenths = -1
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            still, now = going(), status(folder)
            if live is not None:
                live.update(str(now), refresh=True)
            elif now.done * 10 // now.total != tenths:
                tenths = now.done * 10 // now.total
                console.print(str(now))
            if not still:
                return
            time.sleep(interval)
