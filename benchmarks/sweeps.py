"""The default sweep over the same cells by what people use instead, and the same sweep a second time

layergraft: `layergraft train -m +experiment=quickstart`, into an empty store, its report included. The peer is
benchmarks/peers/sweep.py: the same hosts, donors, images, epochs and strategies with Hydra, a LightningModule, torchvision's
transforms, a DataLoader with 2 workers that persist, TensorBoard and Lightning's default callbacks; its three multiruns by
Hydra's basic launcher, and by joblib with as many jobs as there are cores. Each is all of its processes, start to end. layergraft runs
first and again last, and its mean counts, since the machine's pace drifts over the hour that this takes. By default 1 of the
5 seeds, so that starts weigh five times as much, and the peer without DataLoader workers too, which for images this small
may be the kinder way; `--seeds 5` is the whole.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from measure import CORES, CUDA, Figure, at_most, by_turns, child
from peers import sweep as peer

# The same cells as the peer's, which trains no hosts before.
AS_THE_PEER = ["data=digits", "data.half=B", "data.train_size=200", "host.pretrain.data=none", "donor.data=digits",
               "donor.data.half=A", "optim.lr=5e-3", "optim.batch_size=50"]  # fmt: skip
GOALS = {"basic": 0.1 if CUDA else 0.33, "joblib": 0.25 if CUDA else 0.6}


def figures(repeats: int = 1, seeds: int = 1) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        number = iter(range(10**6))
        cells, again = {}, []

        def ours() -> float:
            outputs = Path(folder) / f"ours{next(number)}"
            command = [
                "-m",
                "layergraft",
                "train",
                "-m",
                "+experiment=quickstart",
                *AS_THE_PEER,
                f"seed=range({seeds})",
                f"exec.outputs={outputs}",
            ]
            first, second = timed(command), timed(command)
            again.append(second)
            cells["layergraft"] = len(list(outputs.glob("runs/*/record.json")))
            return first

        def theirs(launcher: str, workers: int) -> float:
            outputs = Path(folder) / f"{launcher}{next(number)}"
            options = [f"hydra.sweep.dir={outputs}", f"num_workers={workers}"]
            options += ["accelerator=gpu", "precision=bf16-mixed"] if CUDA else []
            options += [f"hydra.launcher.n_jobs={CORES}"] if launcher == "joblib" else []
            took = sum(timed([*command[1:], *options]) for command in peer.commands(range(seeds), launcher))
            cells[f"{launcher}, {workers} workers"] = len(list(outputs.glob("*/result.json")))
            return took

        peers = [(launcher, workers) for launcher in GOALS for workers in ((2, 0) if seeds == 1 else (2,))]
        ways = {"first": ours}
        for launcher, workers in peers:
            ways[f"{launcher}, {workers} workers"] = lambda launcher=launcher, workers=workers: theirs(
                launcher, workers
            )
        seconds = by_turns(ways | {"last": ours}, repeats, warm_up=False)
    if len(set(cells.values())) > 1:
        raise RuntimeError(f"not the same cells: {cells}")
    runs = cells["layergraft"]
    mean = [(first + last) / 2 for first, last in zip(seconds["first"], seconds["last"], strict=True)]
    found = []
    for launcher, workers in peers:
        what = f"{runs} runs, over the peer with the {launcher} launcher and {workers or 'no'} DataLoader workers"
        found.append(at_most(what, mean, seconds[f"{launcher}, {workers} workers"], GOALS[launcher]))
    first, last = seconds["first"][0], seconds["last"][0]
    drift = Figure(
        "of the pace: layergraft last over layergraft first",
        f"{last / first:.2f}",
        more=f"{last:.0f} s over {first:.0f} s",
    )
    goal = 3 + 0.01 * runs
    second = max(again)
    return [
        *found,
        drift,
        Figure(
            f"the same sweep of {runs} runs a second time, s",
            f"{second:.2f} (n = {len(again)})",
            f"{goal:.1f} or less",
            second <= goal,
        ),
    ]


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    child(*command)
    return time.perf_counter() - start
