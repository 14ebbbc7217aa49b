"""ResNet-18 in bf16, channels last: the share of this GPU's own matrix multiplication that a whole run reaches

The rate of the GPU is measured here, on bf16 matrices of 8192 x 8192. The run is all of `fit`: images of 32 x 32 that lie on
the GPU, moved and mirrored there, batches of 512, Adam, validation after each epoch, the test split. Its operations are those
that torch counts in a forward and a backward pass, times the images that were trained on; those of validation are not
counted, its time is. The share without the first epoch, in which kernels are chosen and compiled, is given beside it.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import pytorch_lightning as pl
import torch
from measure import CUDA, Figure, by_turns, spread
from run_time import ALL, backend_here, noise
from torch.utils.flop_counter import FlopCounterMode

from layergraft.config.training_schema import OptimSpec, ScheduleSpec
from layergraft.data.batches import Batches, BatchSpec
from layergraft.hosts import TorchvisionResNet
from layergraft.hosts.norms import statistics_paths
from layergraft.strategies.phases import make_plan
from layergraft.training.fit import fit
from layergraft.training.recipe import Recipe

GOAL = 30.0  # percent


def matmul_rate(device: str, size: int, repeats: int = 50) -> float:
    """Operations a second."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def create_once() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        if CUDA:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return 2 * size**3 * repeats / min(by_turns({"matmul": create_once}, 5)["matmul"])


def operations(network: torch.nn.Module, shape: tuple[int, int, int]) -> float:
    """Of training on one image."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, *shape)).sum().backward()
    return counter.get_total_flops() / 2


class EpochEnds(pl.Callback):
    """When each epoch of training ended, validation included: what it logs has read the losses from the device."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.times.append(time.perf_counter())


def figures(
    size: int = 8192, images: int = 50_176, batch: int = 512, epochs: int = 3, width: int = 64, repeats: int = 3
) -> Iterator[Figure]:
    data = noise((3, 32, 32), images, 20 * batch if CUDA else 64)  # whole batches: one of another size compiles again
    host = TorchvisionResNet("resnet18", width=width, stem="small")
    start = host.build(data.shape, data.num_classes, 0)
    each = operations(copy.deepcopy(start), data.shape)
    plan = make_plan(ALL, [n for n, _ in start.named_parameters()], statistics_paths(start), host.roles, epochs)
    recipe = Recipe(OptimSpec("adam", 1e-3, batch_size=batch), ScheduleSpec(epochs=epochs))
    backend = replace(backend_here(), precision="bf16_mixed")
    rate = matmul_rate(backend.device, size)
    yield Figure(f"bf16 matrices of {size} x {size}, TFLOP/s", f"{rate / 1e12:.3g} (the best of 5)")
    batches = Batches.of(data, BatchSpec(batch, shift=4, flip=True), 0, backend.device)

    later: list[float] = []

    def run(**fields: object) -> None:
        ends = EpochEnds()
        fit(copy.deepcopy(start), plan, batches, recipe, replace(backend, **fields), callbacks=[ends])
        later.append((ends.times[-1] - ends.times[0]) / (epochs - 1))

    ways: list[tuple[str, dict[str, object], int]] = [
        ("default settings", {}, repeats),
        ("channels first", {"channels_last": False}, repeats),
        ("compiled, the cache on disk warm", {"compile": True}, 1),  # last: compiling may take a minute
    ]
    trained = images // batch * batch
    for name, fields, times in ways:
        later.clear()
        (seconds,) = by_turns({name: lambda fields=fields: run(**fields)}, times).values()
        shares = [100 * each * trained * epochs / took / rate for took in seconds]
        epoch = statistics.median(later[1:])
        judged = CUDA and name == "default settings"
        yield Figure(
            f"{host.name}, bf16, batch {batch}, {name}: % of the matmul rate",
            spread(shares, 1),
            f"{GOAL:g} or more" if judged else "",
            statistics.median(shares) >= GOAL if judged else None,
            f"without the first epoch {100 * each * trained / epoch / rate:.1f}%, {trained / epoch:,.0f} images a second",
        )
