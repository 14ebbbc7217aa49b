"""The same sweep by layergraft's launcher, by Hydra's basic one and by its joblib launcher: wall seconds, start to end.

    python benchmarks/launchers.py [--seeds 5] [--out benchmarks/results/launchers.json]

The default sweep (+experiment=quickstart), with `--seeds` of its 5 seeds, each time in an empty store and in a process of its
own. All do the same checks, donors, training, records and report; joblib has as many processes as there are cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

LAUNCHERS = {
    "layergraft": ["exec.threads=1"],
    "joblib": ["exec.threads=1", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={os.cpu_count()}"],
    "basic": ["exec.threads=1", "hydra/launcher=basic"],
    "basic, all cores": [f"exec.threads={os.cpu_count()}", "hydra/launcher=basic"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seconds: dict[str, float] = {}
    for name in options.launchers:
        with tempfile.TemporaryDirectory() as outputs:
            program = [sys.executable, "-m", "layergraft", "train", "-m", "+experiment=quickstart"]
            program += [f"seed=range({options.seeds})", f"exec.outputs={outputs}", *LAUNCHERS[name]]
            start = time.perf_counter()
            done = subprocess.run(program, capture_output=True, text=True)
            seconds[name] = time.perf_counter() - start
            runs = len(list(Path(outputs).glob("runs/*/record.json")))
        print(f"{name}: {runs} runs in {seconds[name]:.0f} s (exit code {done.returncode})", flush=True)
        if done.returncode:
            print(done.stderr[-2000:])
    if options.out:
        found = {
            "date": str(date.today()),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "runs": runs,
            "seconds": seconds,
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
