"""What a training step costs beside a bare PyTorch loop: same network, batches, optimizer and threads, side by side.

    python benchmarks/step_cost.py [--host resnet18 --width 4 --batch-size 50 --steps 100 --repeats 25 --out FILE]

The defaults are the default sweep's model and batch. Both sides train one epoch of `--steps` steps from the same
weights, by turns; the bare loop is zero_grad, forward, backward, step. layergraft's side has its phases, learning rates
by step and checkpoints (due as always), and no probes, which do not look within an epoch. The clock runs from step 10 to
the last: what a run costs once (the trainer, the first checkpoint) is not a step's. Printed: the median over repeats of
the ratio within each repeat, with its quartiles, and the ratio of the fastest of each side; and, as a check that both do the same work, the largest difference between
the weights they end with.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from layergraft.data.batches import Batches, BatchSpec
from layergraft.data.images import ImageData, Split
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.recipes import OptimSpec, PhaseSpec, ScheduleSpec, StrategySpec
from layergraft.specs import Device, Precision
from layergraft.strategies import make_plan
from layergraft.training.fit import Backend, Recipe, Saving, fit
from layergraft.training.module import norm_paths

STRATEGY = StrategySpec(
    "low_lr",
    groups={"graft": ["conv1"], "rest": [".*"]},
    phases={"start": PhaseSpec(0, {"graft": 0.1, "rest": 1.0})},
)


def images(number: int, size: int, channels: int) -> ImageData:
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, channels, size, size), np.uint8), rng.integers(0, 10, n))

    return ImageData(split(number), split(64), split(64), 10, fingerprint="noise")


def bare(network, batches, optim, device):
    graft = list(network.conv1.parameters())
    rest = [p for name, p in network.named_parameters() if not name.startswith("conv1")]
    groups = [{"params": graft, "lr": 0.1 * optim.lr}, {"params": rest, "lr": optim.lr}]
    optimizer = torch.optim.Adam(groups, fused=True)
    network.to(device).train()
    clock = Clock(len(batches.train))
    for number, (x, y) in enumerate(batches.train):
        clock.step(number)
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    return clock.seconds


class Clock(pl.Callback):
    """The time from the start of step FIRST to the start of the last."""

    FIRST = 10

    def __init__(self, steps):
        self.last, self.began, self.seconds = steps - 1, 0.0, 0.0
        self.cpu = not torch.cuda.is_available()  # CPU seconds: what else the machine does is not in them

    def step(self, number):
        if number in (self.FIRST, self.last):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.process_time() if self.cpu else time.perf_counter()
            self.began, self.seconds = (now, 0.0) if number == self.FIRST else (self.began, now - self.began)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.step(batch_idx)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="resnet18")
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--stem", default="imagenet")
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    backend = Backend.resolve(Device.auto, Precision.float32)
    data = images(arguments.steps * arguments.batch_size, arguments.size, 1)
    kind = TorchvisionResNet if arguments.host in ("resnet18", "resnet34", "resnet50") else CifarResNet
    host = kind(
        arguments.host, width=arguments.width, **({"stem": arguments.stem} if kind is TorchvisionResNet else {})
    )
    start = host.build(data.shape, data.num_classes, seed=0)
    plan = make_plan(STRATEGY, [n for n, _ in start.named_parameters()], norm_paths(start), host.roles, 1)
    optim = OptimSpec("adam", 5e-3, batch_size=arguments.batch_size)
    batches = Batches.of(data, BatchSpec(arguments.batch_size), 0, backend.device)
    ratios, seconds, theirs = [], [], []
    for repeat in range(arguments.repeats + 1):
        networks, times = [copy.deepcopy(start) for _ in range(2)], [0.0, 0.0]
        for side in (0, 1) if repeat % 2 else (1, 0):
            if side == 0:
                with (
                    backend.arithmetic()
                ):  # a bare loop does not import Lightning, which makes torch ask NVML each step
                    times[0] = bare(networks[0], batches, optim, backend.device)
            else:
                clock = Clock(arguments.steps)
                with tempfile.TemporaryDirectory() as folder:
                    fit(
                        networks[1],
                        plan,
                        batches,
                        Recipe(optim, ScheduleSpec(epochs=1)),
                        backend,
                        saving=Saving(Path(folder)),
                        callbacks=[clock],
                    )
                times[1] = clock.seconds
        if repeat:  # the first is to warm up
            ratios.append(times[1] / times[0])
            theirs.append(times[1] / (arguments.steps - 1 - Clock.FIRST))
            seconds.append(times[0] / (arguments.steps - 1 - Clock.FIRST))
    quartiles = statistics.quantiles(ratios, n=4)
    largest = max(
        (a.cpu() - b.cpu()).abs().max().item()
        for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True)
    )
    text = (
        f"{arguments.host}, width {arguments.width}, batch {arguments.batch_size} of {arguments.size} x {arguments.size}, {arguments.steps} steps, "
        f"{backend.device}, {arguments.threads} thread(s): layergraft / bare loop = {statistics.median(ratios):.3f} "
        f"(quartiles {quartiles[0]:.3f} and {quartiles[2]:.3f}, n = {len(ratios)}), of the fastest {min(theirs) / min(seconds):.3f}; a bare step takes {1e3 * statistics.median(seconds):.2f} ms; "
        f"largest difference of a weight {largest:.1e}"
    )
    print(text)
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write(f"- {text}\n")


if __name__ == "__main__":
    main()
