"""Runs of the default sweep side by side on one GPU, over the same runs one at a time

Eight runs (four strategies, two hosts, seed 0, the late site) by the workers of a sweep, `exec.jobs_per_gpu` of them at once.
Their donors are at hand, and the similarity of the data, which is the CPU's work, is not measured. The time is from the first
run's start to the last one's end, in workers that have done a short run before; what their start takes, which a sweep pays
once, is given beside it. Where NVIDIA's MPS daemon starts, the same under it. On a CPU the workers are processes of one thread.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from measure import CUDA, Figure, child, composed

from layergraft.runs import sweep
from layergraft.runs.assemble import obtain_donors
from layergraft.runs.pool import warm
from layergraft.store import RECORD, read_record

GOAL = 4.0
CELLS = [(strategy, host) for host in ("resnet20", "resnet32") for strategy in ("freeze", "low_lr", "hybrid", "full")]


def figures(at_once: Sequence[int] = (1, 4, 8), runs: int = 8, overrides: Sequence[str] = ()) -> Iterator[Figure]:
    """`at_once` begins with 1."""
    alone = None
    for under in ("", " under MPS"):
        if under and (reason := no_mps()):
            yield Figure(f"runs at once{under}", "not measured", more=reason)
            return
        with mps() if under else nullcontext():
            asked = json.dumps([at_once[1:] if under else at_once, runs, overrides])
            found = json.loads(child(__file__, asked).stdout)
        for number, (seconds, start) in ((int(number), times) for number, times in found.items()):
            more = f"{60 * runs / seconds:.0f} runs a minute; {seconds:.1f} s, after {start:.1f} s in which workers started"
            if alone is None:
                alone = seconds
                yield Figure(f"{runs} runs, one at a time, s", f"{seconds:.1f} (n = 1)", more=more)
            else:
                ratio, goal = alone / seconds, f"{GOAL:g} or more" if number == max(at_once) and CUDA else ""
                yield Figure(f"{number} runs at once{under}: over one at a time", f"{ratio:.2f} (n = 1)", goal,
                             ratio >= GOAL if goal else None, more)  # fmt: skip


def no_mps() -> str:
    """Why there is nothing to measure under MPS; empty where a daemon starts here and a process finds its GPU through it."""
    if not CUDA or not shutil.which("nvidia-cuda-mps-control"):
        return "nvidia-cuda-mps-control is not here" if CUDA else "there is no GPU"
    try:
        with mps():
            child("-c", "import torch; torch.zeros(1).cuda()", timeout=30)
    except subprocess.SubprocessError as error:
        return f"its daemon does not serve a process: {error}"
    return ""


@contextmanager
def mps() -> Iterator[None]:
    """An MPS daemon in folders of its own, for the processes that are started within."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        os.environ.update(own)
        try:
            subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True, timeout=20)
            yield
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, check=False, timeout=20)
            for name in own:
                del os.environ[name]


def measured(at_once: Sequence[int], runs: int, overrides: Sequence[str]) -> dict[int, tuple[float, float]]:
    """Number at once -> seconds from the first run's start to the last one's end, and from the start of all to that. Each
    worker has done a short run before, which does not count."""
    size = ["+size=digits", "site=late", f"exec={'cuda' if CUDA else 'cpu'}", "exec.threads=1", "exec.similarity.resamples=0", *overrides]  # fmt: skip
    learned = ["donor.data=digits", "donor.data.half=A", "donor.schedule.epochs=5"]
    warm()
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        size.append(f"exec.outputs={first}")
        before = [composed(*size, "donor=random", "strategy=full", "host=resnet20", "schedule.epochs=2", f"seed={seed}") for seed in range(max(at_once))]  # fmt: skip
        configs = [composed(*size, *learned, f"strategy={strategy}", f"host={host}") for strategy, host in CELLS[:runs]]
        for config in (*before, *configs):
            obtain_donors(config)
        found = {}
        for number in at_once:
            outputs = Path(folder) / str(number)
            shutil.copytree(first / "donors", outputs / "donors")
            settings = {"outputs": str(outputs), "jobs_per_gpu": number, "workers": number}
            every = [replace(config, exec=replace(config.exec, **settings)) for config in (*before[:number], *configs)]
            jobs = sweep.plan(([], config) for config in every)
            begun = time.time()
            sweep.run(jobs)
            folders = [sweep.folder_of(job) for job in jobs]
            failed = [record for record in map(read_record, folders) if record["status"] != "completed"]
            if failed:
                raise RuntimeError(f"{len(failed)} of {runs} runs failed: {failed[0].get('traceback') or failed[0]}")
            start = min((folder / "config.yaml").stat().st_mtime for folder in folders[number:])
            end = max((folder / RECORD).stat().st_mtime for folder in folders)
            found[number] = (end - start, start - begun)
    return found


if __name__ == "__main__":
    print(json.dumps(measured(*json.loads(sys.argv[1]))))
