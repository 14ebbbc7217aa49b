"""Is the store usable at 100,000 runs? Seconds to see how far a sweep of 10,000 is, to find it finished, to read a record.

    python benchmarks/scale.py [--store 100000] [--sweep 10000]

Records are copies of a real one (`--record`, of the default sweep), under other keys. `planning.py` times the planning.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from layergraft.store.files import write_json
from layergraft.store.records import RECORD, is_done, read_record, run_folder
from layergraft.sweeps.status import status


def timed(what: str, function, times: int = 1) -> None:
    start = time.perf_counter()
    for _ in range(times):
        function()
    print(f"{what}: {(time.perf_counter() - start) / times:.3g} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=int, default=100_000)
    parser.add_argument("--sweep", type=int, default=10_000)
    parser.add_argument("--record", type=Path, help="a record.json; the first in outputs/runs where none is given")
    options = parser.parse_args()
    record = options.record or next(Path("outputs/runs").glob(f"*/{RECORD}"))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        outputs = Path(folder)
        keys = [f"freeze.early.resnet18.trained.seed{i}.0123456789ab" for i in range(options.store)]
        start = time.perf_counter()
        for key in keys:
            run_folder(outputs, key).mkdir(parents=True)
            shutil.copy(record, run_folder(outputs, key) / RECORD)
        print(
            f"{options.store} records of {record.stat().st_size} bytes, written in {time.perf_counter() - start:.0f} s"
        )
        sweep = outputs / "sweeps" / "large"
        write_json(sweep / "sweep.json", {"name": "large", "command": "", "runs": keys[: options.sweep]})
        timed(f"status of {options.sweep} runs", lambda: status(sweep), 3)
        program = [sys.executable, "-m", "layergraft", "status", str(sweep)]
        timed("layergraft status, start to end", lambda: subprocess.run(program, check=True, capture_output=True), 3)
        timed("all of them done?", lambda: all(is_done(run_folder(outputs, key)) for key in keys[: options.sweep]))
        timed("one record, from the end", lambda: read_record(run_folder(outputs, keys[-1])), 100)


if __name__ == "__main__":
    main()
