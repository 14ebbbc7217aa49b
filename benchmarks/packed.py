"""Small runs packed on one GPU (or on a CPU): images a second in all, over one run at a time

ResNet-20, width 16, batches of 128 that lie on the GPU, in bf16. `processes`: as many runs at a time as `exec.jobs_per_gpu`
makes; each is all of `fit`, and they start together. With an MPS daemon (nvidia-cuda-mps-control, started here for the time of
the measurement where it is installed) their kernels run side by side instead of by turns. The others are what one process
could do, written plainly: a CUDA graph of a step, threads that each have a stream, and models stacked by torch.func, whose
weights are one batched tensor.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from measure import CUDA, Figure, spread
from run_time import ALL, backend_here, noise
from torch import Tensor, nn
from torch.nn import functional as F

from layergraft.data.batches import Batches, BatchSpec
from layergraft.hosts import CifarResNet
from layergraft.recipes import OptimSpec, ScheduleSpec
from layergraft.strategies import make_plan
from layergraft.training.fit import Recipe, fit
from layergraft.training.module import norm_paths

HOST, DEVICE = CifarResNet("resnet20"), "cuda" if CUDA else "cpu"
GOAL = 4.0
SIZES = SimpleNamespace(images=25_600, batch=128, epochs=4, steps=400, at_once=(4, 16), stacked=(4, 16))
if not CUDA:
    SIZES = SimpleNamespace(images=640, batch=128, epochs=1, steps=4, at_once=(2,), stacked=(2, 4))


def network() -> nn.Module:
    return HOST.build((3, 32, 32), 10, 0).to(DEVICE, memory_format=torch.channels_last)


def batch() -> tuple[Tensor, Tensor]:
    x_NCHW = torch.randn(SIZES.batch, 3, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    return x_NCHW, torch.randint(0, 10, (SIZES.batch,), device=DEVICE)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x_NCHW: Tensor, y_N: Tensor) -> None:
    optimizer.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = F.cross_entropy(model(x_NCHW), y_N)
    loss.backward()
    optimizer.step()


def adam(parameters: object, **options: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-3, fused=True, **options)


def one_run(go: Path | None) -> None:
    """In a process of its own: a first epoch to warm up, then, when `go` is there, the run, whose seconds are printed."""
    data, backend = noise((3, 32, 32), SIZES.images), backend_here()
    start = HOST.build(data.shape, data.num_classes, 0)

    def run(epochs: int) -> float:
        plan = make_plan(ALL, [n for n, _ in start.named_parameters()], norm_paths(start), HOST.roles, epochs)
        recipe = Recipe(OptimSpec("adam", 1e-3, batch_size=SIZES.batch), ScheduleSpec(epochs=epochs))
        batches = Batches.of(data, BatchSpec(SIZES.batch, shift=4, flip=True), 0, backend.device, gib=4)
        begun = time.time()
        fit(copy.deepcopy(start), plan, batches, recipe, backend)
        return begun

    torch.set_num_threads(1)
    run(1)
    print(f"ready on {DEVICE}", flush=True)
    while not go.exists():
        time.sleep(0.01)
    print(json.dumps([run(SIZES.epochs), time.time()]), flush=True)


def processes(number: int) -> float:
    """Images a second of so many runs at once, from the first's start to the last's end."""
    with tempfile.TemporaryDirectory() as folder:
        go = Path(folder) / "go"
        command = [sys.executable, __file__, str(go), json.dumps(vars(SIZES))]
        runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
        try:
            for run in runs:
                if run.stdout.readline() != f"ready on {DEVICE}\n":
                    raise RuntimeError("a process failed, or has another device")
            go.touch()
            times = [json.loads(run.communicate()[0]) for run in runs]
        finally:
            for run in runs:
                run.kill()
    trained = SIZES.images // SIZES.batch * SIZES.batch * SIZES.epochs * number
    return trained / (max(end for _, end in times) - min(begun for begun, _ in times))


def has_mps() -> bool:
    """Whether a daemon starts here, and a process finds its GPU through it."""
    if not shutil.which("nvidia-cuda-mps-control"):
        return False
    try:
        with mps():
            subprocess.run([sys.executable, "-c", "import torch; torch.zeros(1).cuda()"], check=True, timeout=60)
    except subprocess.SubprocessError as error:
        print(f"MPS was not measured: {error}", file=sys.stderr)
        return False
    return True


@contextmanager
def mps() -> Iterator[None]:
    """An MPS daemon in folders of its own, for the processes that are started within."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        os.environ.update(own)
        try:
            subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True)
            yield
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, check=False)
            for name in own:
                del os.environ[name]


def rate(run: Callable[[], None], models: int = 1) -> float:
    """Images a second of `run`, a step of so many models."""
    for _ in range(SIZES.steps // 10 + 1):
        run()
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(SIZES.steps):
        run()
    if CUDA:
        torch.cuda.synchronize()
    return models * SIZES.steps * SIZES.batch / (time.perf_counter() - start)


def eager() -> float:
    model, (x, y) = network(), batch()
    optimizer = adam(model.parameters())
    return rate(lambda: step(model, optimizer, x, y))


def graphed() -> float:
    """A step captured once and replayed."""
    model, (x, y) = network(), batch()
    optimizer = adam(model.parameters(), capturable=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(model, optimizer, x, y)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(model, optimizer, x, y)
    return rate(graph.replay)


def streams(number: int) -> float:
    """So many models, each by a thread with a stream of its own."""
    own = [(network(), *batch()) for _ in range(number)]

    def work(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
        optimizer = adam(model.parameters())
        with torch.cuda.stream(torch.cuda.Stream()) if CUDA else nullcontext():
            for _ in range(steps):
                step(model, optimizer, x, y)
        if CUDA:
            torch.cuda.synchronize()

    for steps in (SIZES.steps // 10 + 1, SIZES.steps):
        threads = [threading.Thread(target=work, args=(*one, steps)) for one in own]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return number * SIZES.steps * SIZES.batch / (time.perf_counter() - start)


def stacked(number: int) -> float:
    """So many models as one: every weight has a first axis for the model. Batch norms' statistics, which torch.func cannot
    move, are left alone: they take the batch's, so this is a little less work than training."""
    models = [network() for _ in range(number)]
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
                module.num_batches_tracked = None
    parameters, _ = torch.func.stack_module_state(models)
    shell = copy.deepcopy(models[0]).to("meta")
    x = torch.stack([batch()[0] for _ in range(number)])
    y = torch.stack([batch()[1] for _ in range(number)])
    optimizer = adam(parameters.values())

    def loss(weights: Mapping[str, Tensor], x_NCHW: Tensor, y_N: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(shell, dict(weights), (x_NCHW,)), y_N)

    every = torch.func.vmap(loss)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16):
            total = every(parameters, x, y).sum()
        total.backward()
        optimizer.step()

    return rate(run, number)


def figures(repeats: int = 2) -> list[Figure]:
    ways: dict[str, Callable[[], float]] = {"one process": lambda: processes(1)}
    ways |= {f"{number} processes": lambda number=number: processes(number) for number in SIZES.at_once}

    def under_mps(number: int) -> float:
        with mps():
            return processes(number)

    if CUDA and has_mps():
        ways |= {f"{number} processes under MPS": lambda number=number: under_mps(number) for number in SIZES.at_once}
    ways["a plain step, by itself"] = eager
    if CUDA:
        ways["the step as a CUDA graph"] = graphed
    ways |= {f"{number} threads with streams": lambda number=number: streams(number) for number in SIZES.stacked}
    ways |= {f"{number} models stacked": lambda number=number: stacked(number) for number in SIZES.stacked}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(way())
    rows = []
    for name, rates in found.items():
        of_runs = "processes" in name
        base = "one process" if of_runs else "a plain step, by itself"
        if name in ("one process", "a plain step, by itself"):
            continue
        ratios = [a / b for a, b in zip(rates, found[base], strict=True)]
        more = f"{statistics.median(rates):,.0f} images a second over {statistics.median(found[base]):,.0f}"
        rows.append(
            (statistics.median(ratios) * of_runs, Figure(f"resnet20: {name}, over {base}", spread(ratios), more=more))
        )
    best, figure = max(rows, key=lambda row: row[0])
    judged = replace(figure, goal=f"{GOAL:g} or more, of the best", met=best >= GOAL) if CUDA else figure
    return [judged if row is figure else row for _, row in rows]


if __name__ == "__main__":
    SIZES.__dict__.update(json.loads(sys.argv[2]))
    one_run(Path(sys.argv[1]))
