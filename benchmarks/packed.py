"""Ways to pack small runs on one GPU, in plain code: images a second in all, over one run's

ResNet-20, 32 x 32, batches of 128, Adam, bf16; training steps on one batch that lies on the device, and nothing else. The ways:
threads with a stream each; the step as a CUDA graph; several models as one by grouped convolutions, with one batch norm over
the channels of all (Wang et al., HFTA, 2021), which is checked against the separate models; and that as a graph. They are
candidates: layergraft has none of them. `side_by_side` measures its own workers.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from measure import CUDA, Figure, spread
from torch import Tensor, nn
from torch.nn import functional as F

from layergraft.hosts import CifarResNet
from layergraft.hosts.resnet_blocks import PadShortcut

DEVICE = "cuda" if CUDA else "cpu"
CLASSES = 10


class StackedShortcut(nn.Module):
    """PadShortcut for each of several models, (N, models * C, H, W)."""

    def __init__(self, one: PadShortcut, models: int) -> None:
        super().__init__()
        self.one, self.models = one, models

    def forward(self, x_NCHW: Tensor) -> Tensor:
        n, _, h, w = x_NCHW.shape
        y: Tensor = self.one(x_NCHW.reshape(n * self.models, -1, h, w))
        return y.reshape(n, -1, *y.shape[2:])


class StackedLinear(nn.Module):
    """A linear layer for each of several models: (N, models * in) to (N, models * out)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.w_BIO = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))
        self.b_B1O = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers])[:, None])

    def forward(self, x_NI: Tensor) -> Tensor:
        x_BNI = x_NI.unflatten(1, (len(self.w_BIO), -1)).transpose(0, 1)
        return torch.baddbmm(self.b_B1O, x_BNI, self.w_BIO).transpose(0, 1).flatten(1)


def stacked(models: Sequence[nn.Module]) -> nn.Module:
    """Models of one architecture as one: (N, models * C, H, W) to logits (N, models * classes)."""
    whole = copy.deepcopy(models[0])
    for path, module in models[0].named_modules():
        parts = [model.get_submodule(path) for model in models]
        new: nn.Module
        if isinstance(module, nn.Conv2d):
            shape = (len(models) * module.in_channels, len(models) * module.out_channels, module.kernel_size)
            new = nn.Conv2d(*shape, module.stride, module.padding, groups=len(models) * module.groups, bias=False)
        elif isinstance(module, nn.BatchNorm2d):
            new = nn.BatchNorm2d(len(models) * module.num_features)
        elif isinstance(module, PadShortcut):
            new = StackedShortcut(module, len(models))
        elif isinstance(module, nn.Linear):
            new = StackedLinear(parts)
        else:
            continue
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            for name, tensor in new.state_dict().items():
                if tensor.ndim:
                    tensor.copy_(torch.cat([part.state_dict()[name] for part in parts]))
        whole.set_submodule(path, new)
    return whole


def require_stacked_is_each(models: Sequence[nn.Module], x_NCHW: Tensor) -> None:
    """Raise RuntimeError where the models as one do not give what each of them gives for these images."""
    each = torch.cat([copy.deepcopy(model)(x_NCHW) for model in models], 1)
    worst = (stacked(models)(x_NCHW.repeat(1, len(models), 1, 1)) - each).abs().max() / each.abs().max()
    if not worst < 1e-3:
        raise RuntimeError(f"stacked models give other logits than each by itself, by {worst:.1e} of the largest")


def network(seed: int = 0) -> nn.Module:
    return CifarResNet("resnet20").build((3, 32, 32), CLASSES, seed)


def adam(model: nn.Module, **options: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 1e-3, fused=True, **options)


def figures(
    batch: int = 128,
    seconds: float = 2.0,
    threads: Sequence[int] = (4, 16),
    stacks: Sequence[int] = (4, 16),
    repeats: int = 2,
) -> Iterator[Figure]:
    def on_device(model: nn.Module, models: int = 1) -> tuple[nn.Module, Tensor, Tensor]:
        """The model, and a batch for each that it stands for: images (N, models * 3, H, W), labels (N, models)."""
        x_NCHW = torch.randn(batch, 3 * models, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
        y = torch.randint(0, CLASSES, (batch, models), device=DEVICE)
        return model.to(DEVICE, memory_format=torch.channels_last), x_NCHW, y

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x_NCHW: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = model(x_NCHW).view(batch, -1, CLASSES)  # a sum over the models: each has its own gradient
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / batch
        loss.backward()
        optimizer.step()

    def rate(run: Callable[[], None], models: int = 1) -> float:
        """Images a second of `run`, a step of so many models."""
        for _ in range(5):
            run()
        synchronise()
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            for _ in range(5):
                run()
            synchronise()
            steps += 5
        return models * steps * batch / (time.perf_counter() - start)

    def plain(models: int = 1) -> float:
        parts = on_device(network() if models == 1 else stacked([network(seed) for seed in range(models)]), models)
        optimizer = adam(parts[0])
        return rate(lambda: step(parts[0], optimizer, *parts[1:]), models)

    def graphed(models: int = 1) -> float:
        """A step captured once and replayed."""
        parts = on_device(network() if models == 1 else stacked([network(seed) for seed in range(models)]), models)
        optimizer = adam(parts[0], capturable=True)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.derive_seed(side):
            for _ in range(3):
                step(parts[0], optimizer, *parts[1:])
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(parts[0], optimizer, *parts[1:])
        return rate(graph.replay, models)

    def streams(number: int) -> float:
        """So many models, each by a thread with a stream of its own."""
        own = [on_device(network()) for _ in range(number)]
        optimizers = [adam(model) for model, _, _ in own]
        synchronise()

        def work(index: int, steps: int) -> None:
            with torch.cuda.derive_seed(torch.cuda.Stream()) if CUDA else nullcontext():
                for _ in range(steps):
                    step(own[index][0], optimizers[index], *own[index][1:])
            synchronise()

        def taken(steps: int) -> float:
            start = time.perf_counter()
            with ThreadPoolExecutor(number) as pool:
                list(pool.map(work, range(number), [steps] * number))
            return time.perf_counter() - start

        taken(2)
        steps = max(2, round(2 * seconds / taken(2)))
        return number * steps * batch / taken(steps)

    require_stacked_is_each([network(seed) for seed in range(3)], torch.randn(8, 3, 32, 32))
    ways: dict[str, Callable[[], float]] = {}
    if CUDA:
        ways["the step as a CUDA graph"] = graphed
    ways |= {f"{number} models stacked": lambda number=number: plain(number) for number in stacks}
    if CUDA:
        ways |= {
            f"{number} models stacked, as a CUDA graph": lambda number=number: graphed(number) for number in stacks
        }
    ways |= {f"{number} threads with streams": lambda number=number: streams(number) for number in threads}
    for name, way in ways.items():
        alone, packed = zip(*((plain(), way()) for _ in range(repeats)), strict=True)
        ratios = [a / b for a, b in zip(packed, alone, strict=True)]
        more = f"{statistics.median(packed):,.0f} images a second over {statistics.median(alone):,.0f}"
        yield Figure(f"resnet20: {name}, over a plain step", spread(ratios), more=more)


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()
