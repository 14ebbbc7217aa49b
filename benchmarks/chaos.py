"""Is anything lost when a sweep is killed, again and again? 0 lost, 0 duplicated, 0 different is what must come out.

A sweep is run undisturbed; then the same runs in another store, while a random worker or the parent is killed (SIGKILL,
the parent now and then by Ctrl-C) at random moments, and the command started again whenever it ends. Then every record,
learning curve and trained network is compared with the undisturbed ones, bit for bit.

    python benchmarks/chaos.py                  # 40 runs, 20 kills
    python benchmarks/chaos.py --at-once 2      # two sweeps over the same runs at once
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

SWEEP = ["-m", "donor=trained,random", "strategy=freeze,hybrid", "site=early,late", "host=resnet8", "host.width=4",
         "host.pretrain.schedule.epochs=4", "data.train_size=100", "donor.data.train_size=100", "donor.schedule.epochs=2", "optim.batch_size=25",
         "exec.device=cpu", "exec.checkpoint_seconds=0", "exec.sweep=chaos"]  # fmt: skip
OF_THE_MOMENT = ("started", "resumed", "timings", "costs")  # costs has the peak of memory


def arguments(outputs: Path, seeds: int, epochs: int) -> list[str]:
    return [*SWEEP, f"seed=range({seeds})", f"schedule.epochs={epochs}", f"exec.outputs={outputs}"]


def start(outputs: Path, seeds: int, epochs: int) -> subprocess.Popen:
    program = [sys.executable, "-m", "layergraft", "train", *arguments(outputs, seeds, epochs)]
    return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def children(pid: int) -> list[int]:
    """Of a process, by /proc."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def workers(parent: int) -> list[int]:
    """The processes that the forkserver has forked."""
    return [worker for server in children(parent) for worker in children(server)]


def completed(outputs: Path) -> dict[str, int]:
    """Key -> when its record was written, of completed runs."""
    found = {}
    for path in outputs.glob("runs/*/record.json"):
        try:
            if '"status": "completed"' in path.read_text():
                found[path.parent.name] = path.stat().st_mtime_ns
        except FileNotFoundError:
            pass
    return found


def disturbed(
    outputs: Path, again: Callable[[], subprocess.Popen], kills: int, rng: random.Random, at_once: int, pause: float
) -> dict:
    """Have the sweep that `again` starts run to its end in spite of `kills`; counts of what was killed, and of runs that were done twice."""
    count = {"workers killed": 0, "parents killed": 0, "Ctrl-C": 0, "done twice": 0, "starts": 0}
    done: dict[str, int] = {}
    sweeps = [None] * at_once
    draw = lambda: rng.choices(["workers killed", "parents killed", "Ctrl-C"], (6, 3, 1))[0]  # noqa: E731
    what = draw()
    due = time.monotonic() + rng.uniform(0, pause)
    while True:
        for index, sweep in enumerate(sweeps):
            if sweep is None or sweep.poll() not in (None, 0):
                sweeps[index] = again()
                count["starts"] += 1
        now = completed(outputs)
        count["done twice"] += sum(now.get(key, at) != at for key, at in done.items())
        done |= now
        alive = [sweep for sweep in sweeps if sweep.poll() is None]
        if all(sweep.poll() == 0 for sweep in sweeps):
            return count
        if left(count, kills) > 0 and alive and time.monotonic() >= due:
            sweep = rng.choice(alive)
            there = workers(sweep.pid)
            if what == "workers killed" and there:
                os.kill(rng.choice(there), signal.SIGKILL)
            elif what == "parents killed":
                sweep.kill()
            elif what == "Ctrl-C":
                os.killpg(sweep.pid, signal.SIGINT)
            if what != "workers killed" or there:  # else there are none yet
                count[what] += 1
                what = draw()
                due = time.monotonic() + rng.uniform(0, pause)
        time.sleep(0.05)


def left(count: dict, kills: int) -> int:
    return kills - count["workers killed"] - count["parents killed"] - count["Ctrl-C"]


def differences(calm: Path, disturbed: Path) -> dict[str, list[str]]:
    """Keys that are lost, that only the disturbed store has, and whose record, curves or network differ."""
    here, there = ({path.name for path in outputs.glob("runs/*") if path.is_dir()} for outputs in (calm, disturbed))
    differ = [key for key in sorted(here & there) if content(calm / "runs" / key) != content(disturbed / "runs" / key)]
    return {"lost": sorted(here - there), "more": sorted(there - here), "different": differ}


def content(folder: Path) -> tuple:
    path = folder / "record.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    record.get("config", {}).pop("exec", None)  # it has the folder
    return (
        {name: value for name, value in record.items() if name not in OF_THE_MOMENT},
        *(
            (folder / name).read_bytes() if (folder / name).exists() else None
            for name in ("curves.csv", "model.safetensors")
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="8 runs each")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=1, help="sweeps over the same runs at the same time")
    parser.add_argument("--pause", type=float, default=8.0, help="seconds between two kills, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the lots drawn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calm, wild = Path(folder) / "calm", Path(folder) / "wild"
        began = time.perf_counter()
        undisturbed = start(calm, options.seeds, options.epochs)
        assert undisturbed.wait() == 0
        between = time.perf_counter()
        lots = random.Random(options.seed)
        again = partial(start, wild, options.seeds, options.epochs)
        count = disturbed(wild, again, options.kills, lots, options.at_once, options.pause)
        ended = time.perf_counter()
        found = differences(calm, wild)
        runs = len(completed(calm))
        resumed = sum(json.loads(p.read_text())["resumed"] for p in wild.glob("runs/*/record.json"))
    print(f"undisturbed: {runs} runs in {between - began:.0f} s; disturbed: {ended - between:.0f} s, {count}")
    print(f"resumed from a checkpoint: {resumed}; " + ", ".join(f"{name} {len(keys)}" for name, keys in found.items()))
    for name, keys in found.items():
        for key in keys:
            print(f"  {name}: {key}")
    if left(count, options.kills) > 0:
        print("it was through before all kills were; --epochs or --seeds make it longer")
    sys.exit(any(found.values()) or count["done twice"] > 0 or left(count, options.kills) > 0)


if __name__ == "__main__":
    main()
