"""How good a network is on some images, and what its modules give for them: run without moving anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layergraft.config.metric_registry import metrics_of
from layergraft.hosts.norms import batch_norms
from layergraft.metrics.tasks import Task

BATCH = 128  # images at a time, which is what batch norm's re-estimated statistics are of
Batch = tuple[Tensor, Tensor]  # x_NCHW float, y_N
Mode = Callable[[nn.Module], Any]  # a context that a network is run in


def eagerly(network: nn.Module) -> Any:
    """A context in which a compiled network runs as it is written: hooks are seen, and nothing is compiled for a look."""
    return nullcontext() if network._compiled_call_impl is None else torch.compiler.set_stance("force_eager")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with eagerly(network):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def measuring(network: nn.Module, anew: bool = False) -> Iterator[None]:
    """Evaluation mode, but a batch norm whose statistics are still those it was born with, or any for `anew`, takes
    the batch's: without statistics, activations would grow from block to block.

    Nothing is moved: statistics, counts and modes are afterwards what they were.
    """
    norms: list[Any] = [norm for norm in batch_norms(network) if norm.track_running_stats and (anew or _is_new(norm))]
    before = [(norm, type(norm), norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    with evaluating(network):
        for norm, kind, _, _ in before:
            # One process looks by itself: what waits for the others' batches would wait for ever.
            norm.__class__ = nn.BatchNorm2d if kind is nn.SyncBatchNorm else kind
            norm.training, norm.momentum = True, 0.0
        try:
            yield
        finally:
            for norm, kind, momentum, count in before:
                norm.__class__, norm.momentum = kind, momentum
                norm.num_batches_tracked.copy_(count)


def _is_new(norm: nn.Module) -> bool:
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    return not mean.any() and bool((variance == 1).all())


def reestimate(network: nn.Module, norms: Sequence[nn.Module], batches: Iterable[Tensor]) -> None:
    """The running statistics of `norms` anew: the mean over the batches of what each sees in training. Modes stay."""
    tracking: list[Any] = [norm for norm in norms if getattr(norm, "track_running_stats", False)]
    momenta = [norm.momentum for norm in tracking]
    with evaluating(network), torch.no_grad():
        for norm in tracking:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.training = True
        for x_NCHW in batches if tracking else ():
            network(x_NCHW)
    for norm, momentum in zip(tracking, momenta, strict=True):
        norm.momentum = momentum


class Evaluation:
    """Loss, accuracy and the other metrics of a task over batches of logits, kept on the device until they are asked for."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.sums: list[Tensor] = []
        self.logits: list[Batch] = []

    def add(self, logits_NC: Tensor, y_N: Tensor) -> None:
        right = self.task.num_right(logits_NC, y_N)
        total = torch.full_like(right, len(y_N))
        self.sums.append(torch.stack([self.task.loss(logits_NC, y_N, reduction="sum").double(), right, total]))
        self.logits.append((logits_NC, y_N))

    def means(self) -> dict[str, float]:
        """`acc` in percent, and the mean `loss`."""
        loss, right, total = torch.stack(self.sums).sum(0).tolist()
        return {"acc": 100 * right / total, "loss": loss / total}

    def whole(self) -> Batch:
        """All logits and labels, on the CPU."""
        logits_NC, y_N = (torch.cat(parts).cpu() for parts in zip(*self.logits, strict=True))
        return logits_NC, y_N

    def metrics(self) -> dict[str, float]:
        """All that are registered for the task; those of the logits are nan where some of these are not finite, which the
        loss says too."""
        logits_NC, y_N = self.whole()
        others = {name: of.function for name, of in metrics_of(self.task.name).items() if of.function is not None}
        is_sound = bool(logits_NC.isfinite().all())
        return self.means() | {name: float(of(logits_NC, y_N)) if is_sound else math.nan for name, of in others.items()}


@torch.no_grad()
def evaluate(network: nn.Module, batches: Iterable[Batch], task: Task, mode: Mode = measuring) -> dict[str, float]:
    """`acc` in percent and mean `loss` of `network` over batches (x_NCHW, y_N), run as `mode` has it."""
    judged = Evaluation(task)
    with mode(network):
        for x_NCHW, y_N in batches:
            judged.add(network(x_NCHW), y_N)
    return judged.means()


@dataclass
class Statistics:
    """Of all values that a module gives, `x_NC...`."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    zeros: int = 0
    active_C: Tensor | None = None  # which channels have given something other than 0

    def add(self, x: Tensor) -> None:
        self.count += x.numel()
        self.total += x.sum(dtype=torch.float64).item()
        self.squares += x.square().sum(dtype=torch.float64).item()
        self.zeros += int((x == 0).sum())
        active_C = (x != 0).transpose(0, 1).flatten(1).any(1)
        self.active_C = active_C if self.active_C is None else self.active_C | active_C

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def deviation(self) -> float:
        return math.sqrt(max(0.0, self.squares / self.count - self.mean**2))

    @property
    def share_zero(self) -> float:
        return self.zeros / self.count

    @property
    def share_dead(self) -> float:
        """Of the channels: those that are 0 for every image, everywhere."""
        assert self.active_C is not None  # something was added
        return 1 - self.active_C.double().mean().item()


@dataclass
class Activations:
    """A network on some images."""

    activations: dict[str, Statistics]  # module path -> statistics of what it gives
    loss: float
    accuracy: float  # percent


def record_activations(
    network: nn.Module,
    paths: Sequence[str],
    x_NCHW: Tensor,
    y_N: Tensor,
    mode: Mode = measuring,
    task: Task = Task.multi_class,
) -> Activations:
    """Run `network` on these images, as `mode` has it, and look at what the modules at `paths` give."""
    activations = {path: Statistics() for path in paths}
    with ExitStack() as hooks:
        for path, of in activations.items():
            module = network.get_submodule(path)
            hooks.enter_context(module.register_forward_hook(lambda module, args, output, of=of: of.add(output)))
        figures = evaluate(network, zip(x_NCHW.split(BATCH), y_N.split(BATCH), strict=True), task, mode)
    return Activations(activations, figures["loss"], figures["acc"])
