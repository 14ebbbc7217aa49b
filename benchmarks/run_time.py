"""A run's training time over that of a plain PyTorch loop

Same network, batches, epochs and threads, validation after each epoch, the test split at the end. layergraft's side is all of
`fit`: Lightning, learning rates by step, phases, TensorBoard, checkpoints when they are due; with and without the probes
before and after. The loop is written twice: as people write it (Adam as it comes, channels first),
and with what layergraft has found to be faster (fused Adam, channels last), which tells what the framework costs. Both sides
of the latter end with the same weights; on a CPU the benchmark stops where they do not. torch's profiler counts
the host's synchronisations in a step.
"""

from __future__ import annotations

import copy
import gc
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from measure import CORES, CUDA, Figure, at_most, by_turns
from peers import plain
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from layergraft.config.schema import HostSpec, ProbeSpec
from layergraft.config.training_schema import OptimSpec, PhaseSpec, ScheduleSpec, StrategySpec
from layergraft.data.batches import Batches, BatchSpec
from layergraft.data.image_data import ImageData, Split
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.norms import statistics_paths
from layergraft.hosts.sites import STAGE, find_sites
from layergraft.strategies.phases import make_plan
from layergraft.training.backend import Backend
from layergraft.training.fit import CheckpointSettings, fit
from layergraft.training.probes import Probes, ProbeTargets
from layergraft.training.recipe import Recipe

# What makes the host wait for a GPU; on a CPU, where nothing waits, a number that is read, which would.
WAITS = re.compile("cuda(Device|Stream|Event)Synchronize" if CUDA else "aten::_local_scalar_dense")
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
    plan = make_plan(ALL, names, statistics_paths(start), case.host.roles, case.epochs)
    recipe = Recipe(OptimSpec("adam", 1e-3, batch_size=case.batch), ScheduleSpec(epochs=case.epochs))
    spec = BatchSpec(case.batch, shift=1, flip=True)
    stages = [path for path, site in find_sites(start, data.shape).items() if site.kind == STAGE]
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
            saving = CheckpointSettings(Path(folder))
            begun = time.perf_counter()
            looking = (
                ProbeSpec([0, -1]),
                network,
                ProbeTargets(stages),
                batches.val.first(256),
                batches.val,
                case.epochs,
            )
            probe = Probes(*looking) if probes else None
            fit(network, plan, batches, recipe, backend, folder=Path(folder), saving=saving, probe=probe)
            took = time.perf_counter() - begun
        ended["ours"] = network.cpu()
        return took

    peaks: dict[str, list[float]] = {}

    def peak(name: str, run: Callable[[], float]) -> float:
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()  # Lightning does, and a workspace that stood before would not count
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
        at_most(f"{named}: over the loop with the same optimisations", seconds["ours"], seconds["tuned"], case.goal),
        at_most(f"{named}: with probes, over the loop as people write it", seconds["probes"], seconds["as written"]),
    ]


class Profiled(pl.Callback):
    """The events of some steps of the first epoch, hooks and optimizer included."""

    FIRST, STEPS = 2, 4

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if batch_idx == self.FIRST and trainer.current_epoch == 0:
            self.profile = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])])
            self.profile.__enter__()
            self.range = record_function("steps")
            self.range.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: object, outputs: object, batch: object, batch_idx: int) -> None:  # fmt: skip
        if batch_idx == self.FIRST + self.STEPS - 1 and trainer.current_epoch == 0:
            self.range.__exit__(None, None, None)
            self.profile.__exit__(None, None, None)


def is_of_optimizer(event: FunctionEvent | None) -> bool:
    """Whether it is within a fused optimizer, which on a CPU reads its own counts of steps."""
    while event is not None and not event.name.startswith("aten::_fused_"):
        event = event.cpu_parent
    return event is not None


def waits(case: Case) -> Figure:
    """Count the host's synchronisations with the device in a training step."""
    host, data = case.host, noise(case.shape, (Profiled.FIRST + Profiled.STEPS + 2) * case.batch)
    network = host.build(data.shape, data.num_classes, 0)
    plan = make_plan(ALL, [name for name, _ in network.named_parameters()], statistics_paths(network), host.roles, 1)
    optim = OptimSpec("adam", 1e-3, batch_size=case.batch, clip_norm=1.0)
    batches, seen = Batches.of(data, BatchSpec(case.batch, shift=1, flip=True), 0, backend_here().device), Profiled()
    fit(network, plan, batches, Recipe(optim, ScheduleSpec(epochs=1)), backend_here(), callbacks=[seen])
    events = list(seen.profile.events())
    (steps,) = (event.time_range for event in events if event.name == "steps" and event.device_type == DeviceType.CPU)
    inside = [event for event in events if steps.start <= event.time_range.start < steps.end]
    counted = Counter(event.name for event in inside if WAITS.search(event.name) and not is_of_optimizer(event))
    each = ", ".join(f"{name} {number}" for name, number in counted.items())
    total = f"{sum(counted.values()) / Profiled.STEPS:g} (n = {Profiled.STEPS} steps)"
    return Figure(f"{case.name.partition(',')[0]}: host synchronisations per step", total, "0", not counted, each)


def figures(shrink: int = 1, repeats: int | None = None, cases: int | None = None) -> Iterator[Figure]:
    """A `shrink` above 1 takes that part of the training images."""
    threads = torch.get_num_threads()
    chosen = (ON_CUDA if CUDA else CASES)[:cases]
    for case in chosen:
        yield waits(case)
    for case in chosen:
        steps = max(1, case.train // shrink // case.batch)
        name = re.sub(r"[\d,]+ steps", f"{steps * case.epochs} steps", case.name)
        yield from measured(replace(case, name=name, train=steps * case.batch, repeats=repeats or case.repeats))
    torch.set_num_threads(threads)
