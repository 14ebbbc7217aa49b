"""ResNet-18 in bf16, channels last: the share of this GPU's own matrix multiplication that a whole run reaches

The rate of the GPU is measured here, on bf16 matrices of 8192 x 8192. The run is all of `fit`: 50,000 images of 32 x 32 that
lie on the GPU, moved and mirrored there, batches of 512, Adam, validation after each of 3 epochs, the test split. Its
operations are those that torch counts in a forward and a backward pass, times the images that were trained on; those of
validation are not counted, its time is.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import torch
from measure import CUDA, Figure, by_turns, spread
from run_time import ALL, backend_here, noise
from torch.utils.flop_counter import FlopCounterMode

from layergraft.data.batches import Batches, BatchSpec
from layergraft.hosts import TorchvisionResNet
from layergraft.recipes import OptimSpec, ScheduleSpec
from layergraft.strategies import make_plan
from layergraft.training.fit import Recipe, fit
from layergraft.training.module import norm_paths


def matmul_rate(device: str, size: int, repeats: int = 50) -> float:
    """Operations a second."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def once() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        if CUDA:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return 2 * size**3 * repeats / min(by_turns({"matmul": once}, 5)["matmul"])


def operations(network: torch.nn.Module, shape: tuple[int, int, int]) -> float:
    """Of training on one image."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, *shape)).sum().backward()
    return counter.get_total_flops() / 2


def figures(size: int = 8192, images: int = 50_000, batch: int = 512, epochs: int = 3, width: int = 64) -> list[Figure]:
    data = noise((3, 32, 32), images, 10_000 if CUDA else 64)
    host = TorchvisionResNet("resnet18", width=width, stem="small")
    start = host.build(data.shape, data.num_classes, 0)
    each = operations(copy.deepcopy(start), data.shape)
    plan = make_plan(ALL, [n for n, _ in start.named_parameters()], norm_paths(start), host.roles, epochs)
    recipe = Recipe(OptimSpec("adam", 1e-3, batch_size=batch), ScheduleSpec(epochs=epochs))
    backend = replace(backend_here(), precision="bf16_mixed")
    rate = matmul_rate(backend.device, size)

    batches = Batches.of(data, BatchSpec(batch, shift=4, flip=True), 0, backend.device)

    def run(**fields: object) -> None:
        fit(copy.deepcopy(start), plan, batches, recipe, replace(backend, **fields))

    ways = {
        "as it comes": {},
        "channels first": {"channels_last": False},
        "compiled, from the cache on disk": {"compile": True},
    }
    seconds = by_turns({name: lambda fields=fields: run(**fields) for name, fields in ways.items()}, 3)
    trained = images // batch * batch * epochs
    found = []
    for name in ways:
        shares = [100 * each * trained / took / rate for took in seconds[name]]
        goal, met = ("30 or more", sorted(shares)[1] >= 30) if name == "as it comes" else ("", None)
        more = f"{trained / sorted(seconds[name])[1]:,.0f} images a second; the GPU: {rate / 1e12:.0f} TFLOP/s"
        found.append(
            Figure(f"resnet18, bf16, batch {batch}, {name}: % of the matmul rate", spread(shares, 1), goal, met, more)
        )
    return found
