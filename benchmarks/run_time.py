"""A run's training time over that of a plain PyTorch loop

Same network, batches, epochs and threads, validation after each epoch, the test split at the end. layergraft's side is all of
`fit`: Lightning, learning rates by step, phases, TensorBoard, checkpoints when they are due; with and without the probes
before and after. The loop is written twice: as people write it (Adam as it comes, channels first),
and with what layergraft has found to be faster (fused Adam, channels last), which tells what the framework costs. Both sides
of the latter end with the same weights; on a CPU the benchmark stops where they do not.
"""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measure import CORES, CUDA, Figure, at_most, by_turns
from peers import plain

from layergraft.data.batches import Batches, BatchSpec
from layergraft.data.images import ImageData, Split
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.sites import STAGE, survey
from layergraft.recipes import OptimSpec, PhaseSpec, ScheduleSpec, StrategySpec
from layergraft.specs import HostSpec, ProbeSpec
from layergraft.strategies import make_plan
from layergraft.training.fit import Backend, Recipe, Saving, fit
from layergraft.training.module import norm_paths
from layergraft.training.probes import Probes, Subject

ALL = StrategySpec("full", groups={"all": [".*"]}, phases={"only": PhaseSpec(0, train={"all": 1.0})})


@dataclass(frozen=True)
class Case:
    name: str
    host: HostSpec
    shape: tuple[int, int, int]
    train: int
    batch: int
    epochs: int
    threads: int
    repeats: int
    goal: float | None = 1.03


CASES = [
    Case("resnet20, width 8, 8 x 8, batch 50, 80 steps (the default sweep's)", CifarResNet("resnet20", width=8), (1, 8, 8), 200, 50, 20, 1, 9),
    Case("resnet20, width 16, 32 x 32, batch 128, 40 steps", CifarResNet("resnet20"), (3, 32, 32), 2560, 128, 2, CORES, 3),
    Case("resnet18, width 32, 32 x 32, batch 128, 24 steps", TorchvisionResNet("resnet18", width=32, stem="small"), (3, 32, 32), 3072, 128, 1, CORES, 2),
]  # fmt: skip
ON_CUDA = [
    Case("resnet20, width 16, 32 x 32, batch 128, 1,000 steps", CifarResNet("resnet20"), (3, 32, 32), 25_600, 128, 5, 1, 5),
    Case("resnet18, width 64, 32 x 32, batch 512, 490 steps", TorchvisionResNet("resnet18", stem="small"), (3, 32, 32), 50_176, 512, 5, 1, 5),
]  # fmt: skip


def noise(shape: tuple[int, int, int], train: int, val: int = 256, num_classes: int = 10) -> ImageData:
    rng = np.random.default_rng(0)

    def split(number: int) -> Split:
        return Split(rng.integers(0, 256, (number, *shape), np.uint8), rng.integers(0, num_classes, number))

    return ImageData(split(train), split(val), split(val), num_classes, fingerprint="noise")


def backend_here(**fields: object) -> Backend:
    """As a run has it where nothing is said."""
    device, precision = ("cuda", "bf16_mixed") if CUDA else ("cpu", "float32")
    return Backend(device, precision, **{"channels_last": None, "features_gib": None, **fields})


def measured(case: Case) -> list[Figure]:
    torch.set_num_threads(case.threads)
    backend, data = backend_here(), noise(case.shape, case.train)
    start = case.host.build(data.shape, data.num_classes, 0)
    names = [name for name, _ in start.named_parameters()]
    plan = make_plan(ALL, names, norm_paths(start), case.host.roles, case.epochs)
    recipe = Recipe(OptimSpec("adam", 1e-3, batch_size=case.batch), ScheduleSpec(epochs=case.epochs))
    spec = BatchSpec(case.batch, shift=1, flip=True)
    stages = [path for path, site in survey(start, data.shape).items() if site.kind == STAGE]
    ended: dict[str, torch.nn.Module] = {}

    def loop(tuned: bool) -> float:
        network, batches = copy.deepcopy(start).to(backend.device), Batches.of(data, spec, 0, backend.device)
        if tuned:
            backend.lay_out(network)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True if tuned else None)
        splits = batches.train.of_epoch, batches.val, batches.test
        begun = time.perf_counter()
        with backend.arithmetic() if tuned else nullcontext():
            plain.train(network, optimizer, *splits, case.epochs, backend.precision != "float32")
        took = time.perf_counter() - begun  # the figures of the test split are read: the device is done
        if tuned:
            ended["loop"] = network.cpu()
        return took

    def ours(probes: bool) -> float:
        network, batches = copy.deepcopy(start), Batches.of(data, spec, 0, backend.device)
        with tempfile.TemporaryDirectory() as folder:
            saving = Saving(Path(folder))
            begun = time.perf_counter()
            looking = ProbeSpec([0, -1]), network, Subject(stages), batches.val.first(256), batches.val, case.epochs
            probe = Probes(*looking) if probes else None
            fit(network, plan, batches, recipe, backend, folder=Path(folder), saving=saving, probe=probe)
            took = time.perf_counter() - begun
        ended["ours"] = network.cpu()
        return took

    peaks: dict[str, list[float]] = {}

    def peak(name: str, run: Callable[[], float]) -> float:
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before, took = torch.cuda.memory_allocated(), run()
        peaks.setdefault(name, []).append((torch.cuda.max_memory_allocated() - before) / 2**20)
        return took

    ways = {"as written": lambda: loop(False), "tuned": lambda: loop(True), "ours": lambda: ours(False), "probes": lambda: ours(True)}  # fmt: skip
    if CUDA:
        ways = {name: lambda name=name, run=run: peak(name, run) for name, run in ways.items()}
    seconds = by_turns(ways, case.repeats)
    pairs = zip(ended["ours"].parameters(), ended["loop"].parameters(), strict=True)
    largest = max((a.cpu() - b.cpu()).abs().max().item() for a, b in pairs)
    if largest > 0 and not CUDA:
        raise RuntimeError(f"{case.name}: the two sides do not do the same work: weights differ by {largest:.1e}")
    named = f"{case.name}, {case.threads} threads" if not CUDA else case.name
    of_memory = [
        at_most(f"{named}: peak memory on the GPU", peaks[way], peaks["as written"], 1.1, f"{peaks[way][0]:.0f} MiB over {peaks['as written'][0]:.0f} MiB")
        for way in ("ours",) if CUDA
    ]  # fmt: skip
    return of_memory + [
        at_most(f"{named}: over the loop as people write it", seconds["ours"], seconds["as written"], case.goal),
        at_most(f"{named}: over the loop tuned likewise", seconds["ours"], seconds["tuned"], case.goal),
        at_most(f"{named}: with probes, over the loop as people write it", seconds["probes"], seconds["as written"]),
    ]


def figures() -> list[Figure]:
    threads = torch.get_num_threads()
    found = [figure for case in (ON_CUDA if CUDA else CASES) for figure in measured(case)]
    torch.set_num_threads(threads)
    return found
