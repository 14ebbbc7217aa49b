"""The report over 10,000 runs

`layergraft report`, a process start to end, of 2,500, 5,000 and 10,000 runs: the default sweep's cells with as many seeds,
whose records are copies of real ones with other seeds and accuracies. Growing linearly: twice the runs take at most 2.2 times
as long, what no runs would take left out.
"""

from __future__ import annotations

import copy
import json
import random
import tempfile
import time
from pathlib import Path

from measure import Figure, child, peak_mb

from layergraft.store.files import write_json
from layergraft.store.records import RECORD, run_folder
from layergraft.store.sweep_folder import SWEEP

CONTRASTS = {"hybrid less full": {"of": ["+strategy=hybrid", "-strategy=full"], "metric": "test/acc"}}
SIZES = (2_500, 5_000, 10_000)


def records_of(outputs: Path) -> list[dict]:
    """Of one seed of the default sweep's smallest size, trained now."""
    options = [
        "train",
        "-m",
        "+experiment=quickstart",
        "size=smoke",
        "seed=0",
        f"exec.outputs={outputs}/real",
        "exec.sweep=real",
    ]
    child("-m", "layergraft", *options)
    return [json.loads(path.read_text()) for path in sorted((outputs / "real" / "runs").glob(f"*/{RECORD}"))]


def store(outputs: Path, records: list[dict], number: int) -> Path:
    """The folder of a sweep of so many runs, each with its record."""
    rng, keys = random.Random(0), []
    for index in range(number):
        seed, record = index // len(records), copy.deepcopy(records[index % len(records)])
        record["key"] = f"{record['key'].rpartition('.seed')[0]}.seed{seed}.{index:012x}"
        record["axes"]["seed"] = record["config"]["seed"] = seed
        for name in ("test/acc", "val/acc", "val/aulc"):
            record["metrics"][name] = min(100.0, max(0.0, record["metrics"][name] + rng.gauss(0, 2)))
        keys.append(record["key"])
        write_json(run_folder(outputs, record["key"]) / RECORD, record)
    sweep = outputs / "sweeps" / f"of {number}"
    write_json(sweep / SWEEP, {"name": sweep.name, "command": "", "contrasts": CONTRASTS, "runs": keys})
    return sweep


def figures() -> list[Figure]:
    seconds, peaks = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        records = records_of(Path(folder))
        for number in (len(records), *SIZES):
            sweep = store(Path(folder) / str(number), records, number)
            start = time.perf_counter()
            peaks[number] = peak_mb("-m", "layergraft", "report", str(sweep))
            seconds[number] = time.perf_counter() - start
            page = (sweep / "report.html").stat().st_size / 2**20
    least, (half, whole) = seconds[len(records)], SIZES[1:]
    growth = (seconds[whole] - least) / (seconds[half] - least)
    each = ", ".join(f"{number:,}: {seconds[number]:.0f} s, {peaks[number]:.0f} MiB" for number in seconds)
    return [
        Figure("seconds, 10,000 runs", f"{seconds[whole]:.1f} (n = 1)", "60 or less", seconds[whole] <= 60, each),
        Figure(
            "peak memory, MiB",
            f"{peaks[whole]:.0f} (n = 1)",
            "1,500 or less",
            peaks[whole] <= 1500,
            f"the page: {page:.1f} MiB",
        ),
        Figure(
            "10,000 runs over 5,000", f"{growth:.2f} (n = 1)", "2.2 or less", growth <= 2.2, "less what 32 runs take"
        ),
    ]
