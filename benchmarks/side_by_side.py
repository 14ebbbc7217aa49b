"""Runs of the default sweep side by side on one GPU, over the same runs one at a time

Eight runs (four strategies, two hosts, seed 0, the late site) by the workers of a execution, `exec.jobs_per_gpu` of them at once.
Their donors are made before, and the similarity of the data, which is the CPU's work, is not measured. Each worker has done a
short run before; the time is from the mean start of the workers' first runs to the end of the last run. Starting the workers,
which a sweep pays once, is given beside it. If NVIDIA's MPS daemon starts, the same is measured under it. On a CPU the workers
are processes of one thread.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from measure import CUDA, Figure, composed

from layergraft.runs.build import get_donors
from layergraft.runs.plan import plan_run
from layergraft.store.records import RECORD, read_record
from layergraft.sweeps import execution
from layergraft.sweeps.worker_pool import warm

GOAL = 4.0
CONTROL, DRIVER = "nvidia-cuda-mps-control", "/usr/local/nvidia/bin"  # where a container may have it
CELLS = [(strategy, host) for host in ("resnet20", "resnet32") for strategy in ("freeze", "low_lr", "hybrid", "full")]


def figures(at_once: Sequence[int] = (1, 4, 8), runs: int = 8, overrides: Sequence[str] = ()) -> Iterator[Figure]:
    """`at_once` begins with 1."""
    alone = 0.0
    for number, seconds, start in in_a_process(at_once, runs, overrides):
        if number == 1:
            alone = seconds
            yield Figure(f"{runs} runs, one at a time, s", f"{seconds:.1f} (n = 1)", more=words(runs, seconds, start))
        else:
            yield over_one(alone, number, "", runs, seconds, start, max(at_once))
    not_measured, control = (
        Figure("the same under MPS", "not measured"),
        shutil.which(CONTROL, path=f"{os.environ['PATH']}:{DRIVER}"),
    )
    if not CUDA or control is None:
        yield replace(not_measured, more=f"there is no {CONTROL}" if CUDA else "there is no GPU")
        return
    try:
        with mps(control) as servers:
            for number, seconds, start in in_a_process(at_once[1:], runs, overrides):
                if not servers():  # then CUDA goes on without MPS, and says nothing
                    yield replace(not_measured, more="its daemon started no server")
                    return
                yield over_one(alone, number, " under MPS", runs, seconds, start, max(at_once))
    except (OSError, subprocess.SubprocessError) as error:
        yield replace(not_measured, more=f"it failed: {error}")


def over_one(alone: float, number: int, under: str, runs: int, seconds: float, start: float, most: int) -> Figure:
    ratio, judged = alone / seconds, number == most and CUDA
    return Figure(f"{number} runs at once{under}: over one at a time", f"{ratio:.2f} (n = 1)", f"{GOAL:g} or more" if judged else "",
                  ratio >= GOAL if judged else None, words(runs, seconds, start))  # fmt: skip


def words(runs: int, seconds: float, start: float) -> str:
    return f"{60 * runs / seconds:.0f} runs a minute; {seconds:.1f} s, plus {start:.1f} s to start the workers"


def in_a_process(at_once: Sequence[int], runs: int, overrides: Sequence[str]) -> Iterator[tuple[int, float, float]]:
    """`measured`, in a process of its own, whose workers begin in the environment as it is now. Raises CalledProcessError."""
    command = [sys.executable, __file__, json.dumps([at_once, runs, overrides]), "cuda" if CUDA else "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        for line in program.stdout:
            number, seconds, start = json.loads(line)
            yield number, seconds, start
    if program.returncode:
        raise subprocess.CalledProcessError(program.returncode, "side_by_side.py")


@contextmanager
def mps(control: str) -> Iterator[Callable[[], str]]:
    """An MPS daemon in folders of its own, for the processes that are started within; what is given tells its servers."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for path in own.values():
            os.mkdir(path)
        os.environ.update(own)

        def ask(command: str) -> str:
            done = subprocess.run([control], input=f"{command}\n", capture_output=True, text=True, timeout=20)
            return done.stdout.strip()

        try:
            subprocess.run([control, "-d"], check=True, timeout=20)
            yield lambda: ask("get_server_list")
        finally:
            with suppress(subprocess.SubprocessError):
                ask("quit -t 2")
            for name in own:
                del os.environ[name]


def measured(at_once: Sequence[int], runs: int, overrides: Sequence[str]) -> Iterator[tuple[int, float, float]]:
    """Yield how many runs at once, the seconds that they took, and the seconds before, in which workers started and each did a
    short run."""
    size = ["+size=digits", "data=digits", "data.half=B", "data.train_size=200", "host.pretrain.data=none", "optim.lr=5e-3", "optim.batch_size=50", "site=late", f"exec={'cuda' if CUDA else 'cpu'}", "exec.threads=1", "exec.similarity.resamples=0", *overrides]  # fmt: skip
    learned = ["donor.data=digits", "donor.data.half=A", "donor.schedule.epochs=5"]
    warm()
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        size.append(f"exec.outputs={first}")
        before = [composed(*size, "donor=random", "strategy=full", "host=resnet20", "schedule.epochs=2", f"seed={seed}") for seed in range(max(at_once))]  # fmt: skip
        configs = [composed(*size, *learned, f"strategy={strategy}", f"host={host}") for strategy, host in CELLS[:runs]]
        for config in (*before, *configs):
            get_donors(plan_run(config))
        for number in at_once:
            outputs = Path(folder) / str(number)
            shutil.copytree(first / "donors", outputs / "donors")
            settings = {"outputs": str(outputs), "jobs_per_gpu": number, "workers": number}
            every = [replace(config, exec=replace(config.exec, **settings)) for config in (*before[:number], *configs)]
            jobs = execution.planned(([], config) for config in every)
            begun = time.time()
            execution.run(jobs)
            folders = [job.folder for job in jobs]
            failed = [record for record in map(read_record, folders) if record.status != "completed"]
            if failed:
                raise RuntimeError(f"{len(failed)} of {runs} runs failed: {failed[0].get('traceback') or failed[0]}")
            starts = sorted((folder / "config.yaml").stat().st_mtime for folder in folders[number:])
            start = statistics.fmean(starts[:number])  # they begin one after another
            end = max((folder / RECORD).stat().st_mtime for folder in folders)
            yield number, end - start, start - begun


if __name__ == "__main__":
    if CUDA != (sys.argv[2] == "cuda"):
        sys.exit(f"asked for {sys.argv[2]}, and CUDA is {'there' if CUDA else 'not there'}")
    for found in measured(*json.loads(sys.argv[1])):
        print(json.dumps(found), flush=True)
