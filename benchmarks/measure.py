"""What the benchmarks share: things run side by side, by turns; ratios with their spread; the table, and its file.

A figure is a ratio of two things that ran in one go: machines differ, and one machine differs from hour to hour.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from layergraft.config.schema import Config

RESULTS = Path(__file__).parent / "results"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Figure:
    """A row of the table."""

    what: str
    value: str
    goal: str = ""
    met: bool | None = None
    """None where there is no goal."""
    more: str = ""
    """In which absolute figures."""

    @property
    def cells(self) -> list[str]:
        return [self.what, self.value, self.goal, {True: "yes", False: "no", None: ""}[self.met], self.more]


def by_turns(ways: Mapping[str, Callable[[], object]], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds that each way took, one for each repeat, in which each runs once, another first each time. A way that gives a
    float is measured by that. With `warm_up` there is a repeat before, which does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for repeat in range(repeats + warm_up):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            if CUDA:
                torch.cuda.synchronize()
            start = time.perf_counter()
            given = ways[name]()
            if CUDA:
                torch.cuda.synchronize()
            if repeat >= warm_up:
                found[name].append(given if isinstance(given, float) else time.perf_counter() - start)
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, with the smallest and largest (from 4 values on the quartiles), and n."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return f"{middle} (n = 1)"
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 3 else (min(values), 0, max(values))
    return f"{middle} ({low:.{digits}f} to {high:.{digits}f}, n = {len(values)})"


def at_most(
    what: str, ours: Sequence[float], theirs: Sequence[float], goal: float | None = None, more: str = ""
) -> Figure:
    """The ratio of what was measured in the same repeat; the goal is this or less."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    met = None if goal is None else statistics.median(ratios) <= goal
    seconds = f"{statistics.median(ours):.3g} s over {statistics.median(theirs):.3g} s"
    return Figure(what, spread(ratios), "" if goal is None else f"{goal:g} or less", met, more or seconds)


@cache
def hardware() -> str:
    if CUDA:
        return f"{torch.cuda.get_device_name()}, driver {nvidia_smi('driver_version')}"
    return f"CPU {platform.machine()}, {CORES} cores"


def table(figures: Sequence[Figure]) -> str:
    rows = [["what", "figure", "goal", "met", "details"], ["---"] * 5, *(figure.cells for figure in figures)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def printed(figures: Iterable[Figure]) -> Iterator[Figure]:
    """The figures, each printed as it comes."""
    for figure in figures:
        print(
            "; ".join(
                filter(None, [f"{figure.what}: {figure.value}", figure.goal and f"goal {figure.goal}", figure.more])
            ),
            flush=True,
        )
        yield figure


def nvidia_smi(field: str) -> str:
    """What nvidia-smi says of the first GPU: `driver_version`, `memory.free`; asked that way, CUDA does not start for it."""
    asked = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def result_path(folder: Path, topic: str) -> Path:
    """TOPIC_HARDWARE_DATE.md"""
    kind = re.sub(r"[^\w.-]+", "-", torch.cuda.get_device_name()) if CUDA else "cpu"
    return folder / f"{topic.replace('_', '-')}_{kind}_{date.today()}.md"


def publish(folder: Path, topic: str, command: str, about: str, figures: Iterable[Figure]) -> tuple[Path, list[Figure]]:
    """Write the result anew after each figure, so that what is cut off loses only the rest. `command` makes it again; of
    `about` the first line is the title."""
    path, found, start = result_path(folder, topic), [], time.perf_counter()
    title, _, how = about.strip().partition("\n")
    for figure in figures:
        found.append(figure)
        took = time.perf_counter() - start
        lines = [
            f"# {title}",
            f"`{command}`, {date.today()}: {hardware()}, torch {torch.__version__}, {took:.0f} s. Values are "
            "medians with quartiles, or with the range if n < 4.",
            table(found),
            how.strip(),
        ]
        path.write_text("\n\n".join(line for line in lines if line) + "\n")
    return path, found


def composed(*overrides: str) -> Config:
    """A run's config, as `layergraft train` composes it."""
    from hydra import compose, initialize_config_dir

    from layergraft.config.compose import conf_dir, to_config
    from layergraft.config.overrides import to_hydra

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return to_config(compose("config", [to_hydra(override) for override in overrides]))


def child(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess:
    """A Python program, start to end. Raises CalledProcessError, its errors printed, where it fails."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, **options)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    done.check_returncode()
    return done


def peak_mb(*arguments: str | Path | int) -> float:
    """The most memory that a Python program had, MiB."""
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as program:
        errors = program.stderr.read().decode()
        _, status, usage = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
    if program.returncode:
        raise RuntimeError(errors[-3000:])
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
