"""The frozen prefix: what stands before the first layer that can move gives the same for an image in every epoch, so that
it is computed once, and training begins behind it.

It never changes a result. It is left alone where images are drawn anew in each epoch (moved, mirrored, mixed), and what it
gives is tried out first: not the same bits, whatever other images are in the batch, and it is not used.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from layergraft.hosts.norms import STATISTICS
from layergraft.strategies.phases import Phase
from layergraft.training.evaluation import Batch, evaluating
from layergraft.training.lightning_module import PlannedModule


class FrozenPrefix(pl.Callback):
    """In each phase of two epochs or more, keeps what the prefix gives for the training and validation images and has the
    module and its batches go on from there. After `UnfreezeByPhase`; `used` says what was kept, from which epoch on.

    `limit_gib` is what may be kept on the device; None: a tenth of what is free there, shared by so many runs as are
    `beside` one another.
    """

    def __init__(self, limit_gib: float | None, beside: int = 1) -> None:
        self.limit_gib, self.beside = limit_gib, beside
        self.used: list[dict[str, Any]] = []
        self.phase: Phase | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"used": self.used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.used = state_dict["used"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        if pl_module.phase is self.phase:
            return
        self.phase = pl_module.phase
        self.on_train_end(trainer, pl_module)
        epoch = trainer.current_epoch
        starts = [*pl_module.plan.starts(pl_module.curves), pl_module.schedule.epochs]
        last = next(start for start in starts if start > epoch)
        train: Any = trainer.train_dataloader
        if last - epoch > 1 and train.are_the_same_in_every_epoch:
            device = pl_module.device
            with (
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                torch.no_grad(),
                trainer.precision_plugin.forward_context(),
            ):
                self._keep(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning leaves out where it resumes in mid-epoch

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException | None = None) -> None:
        pl_module.behind_prefix = None
        for batches in (trainer.train_dataloader, trainer.val_dataloaders):
            if batches is not None:  # an exception may come before there are any
                batches.features = None

    on_exception = on_train_end

    def _keep(self, trainer: pl.Trainer, module: PlannedModule) -> None:
        train: Any = trainer.train_dataloader
        val: Any = trainer.val_dataloaders
        paths = prefix_of(module.network)
        if not paths:
            return
        prefix = nn.Sequential(*map(module.network.get_submodule, paths))  # in the modes that they are in
        windows = list(train.windows())
        first, second = (train.at(window) for window in (windows[0], windows[-1]))
        drawn = random_state(module.device)
        if not is_exact(module.network, paths, prefix, first, second):
            return
        number = [len(train.y_N), len(val.images.y_N)]
        sample = prefix(first)
        size = sum(number) * sample[0].nbytes
        limit = train.free_bytes() / 10 / self.beside if self.limit_gib is None else self.limit_gib * 2**30
        if size > limit:
            return
        kept = [Features.like(sample, n) for n in number]
        for window in windows:
            kept[0].put(window.start, prefix(train.at(window)))
        for index, (x_NCHW, _) in enumerate(val.images):
            kept[1].put(index * val.images.batch_size, prefix(x_NCHW))
        if not torch.equal(drawn, random_state(module.device)):
            return  # it draws random numbers, such as a dropout's
        train.features, val.features = kept
        module.behind_prefix = without(module.network, paths).__call__
        self.used.append({"epoch": trainer.current_epoch, "through": paths[-1], "bytes": size})


@dataclass(frozen=True)
class Features:
    """What a prefix gives, an image a row, in the order in memory in which it came: of another, sums may have other bits."""

    rows: Tensor
    shape: tuple[int, ...]  # of an image
    strides: tuple[int, ...]  # of a batch

    @classmethod
    def like(cls, batch: Tensor, number: int) -> Features:
        """Room for so many images."""
        rows = torch.empty(number, batch[0].numel(), dtype=batch.dtype, device=batch.device)
        return cls(rows, tuple(batch.shape[1:]), batch.stride())

    def put(self, start: int, batch: Tensor) -> None:
        rows = self.rows[start : start + len(batch)]
        rows.as_strided(batch.shape, self.strides, rows.storage_offset()).copy_(batch)

    def take(self, index: Tensor | slice) -> Tensor:
        """A copy: a network may write over what it is given."""
        rows = self.rows[index].clone() if isinstance(index, slice) else self.rows[index]
        return rows.as_strided((len(rows), *self.shape), self.strides)


def chain(network: nn.Module, at: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The links of a network that runs its modules one after another, with their paths; rows of modules are taken apart."""
    for name, module in network.named_children():
        if isinstance(module, nn.Sequential):
            yield from chain(module, f"{at}{name}.")
        else:
            yield f"{at}{name}", module


def is_still(module: nn.Module) -> bool:
    """Whether nothing in it learns, moves statistics, or looks at the other images of a batch."""
    norms = (part for part in module.modules() if isinstance(part, STATISTICS))
    learns = any(parameter.requires_grad for parameter in module.parameters())
    return not learns and all(not norm.training and norm.running_mean is not None for norm in norms)


def prefix_of(network: nn.Module) -> list[str]:
    """The paths of the links before the first that is not still; none where they have no parameters."""
    if next(network.parameters(recurse=False), None) is not None:
        return []  # of a network's own parameter nobody knows where it acts
    links = list(takewhile(lambda link: is_still(link[1]), chain(network)))
    return [path for path, _ in links] if any(True for _, link in links for _ in link.parameters()) else []


def without(network: nn.Module, paths: Sequence[str], at: str = "") -> nn.Module:
    """`network`, its modules and parameters, but for the links at `paths`, which give on what they are given."""
    tail = copy.copy(network)
    tail._modules = dict(network._modules)
    for name, module in network._modules.items():
        if at + name in paths:
            tail._modules[name] = nn.Identity()
        elif module is not None and any(path.startswith(f"{at}{name}.") for path in paths):
            tail._modules[name] = without(module, paths, f"{at}{name}.")
    return tail


def is_exact(
    network: nn.Module, paths: Sequence[str], prefix: nn.Module, first_NCHW: Tensor, second_NCHW: Tensor
) -> bool:
    """Whether `network` runs the links at `paths` first, the rest behind `prefix` gives what it does, bit for bit, and the
    prefix gives that for an image wherever in a batch, and beside whichever others, it is, image after image in memory. Of
    two batches of one size."""
    half = len(first_NCHW) // 2
    order: list[str] = []
    try:
        with evaluating(network):
            with ExitStack() as hooks:
                for path, link in chain(network):
                    hooks.enter_context(link.register_forward_pre_hook(lambda *_, path=path: order.append(path)))
                whole = network(first_NCHW)
            features = prefix(first_NCHW)
            parted = without(network, paths)(features.clone())
        others = prefix(torch.cat([second_NCHW[:half], first_NCHW[: len(first_NCHW) - half]]))
        image = features[0]
        extent = 1 + sum((size - 1) * step for size, step in zip(image.shape, image.stride(), strict=True))
        one_after_another = features.stride(0) == image.numel() == extent
    except (RuntimeError, TypeError, AttributeError):  # it is no chain, or there is no memory for the trial
        return False
    in_order = order[: len(paths)] == list(paths) and not set(order[len(paths) :]) & set(paths)
    alike = torch.equal(others[half:], features[: len(first_NCHW) - half])
    return one_after_another and in_order and alike and torch.equal(whole, parted)


def random_state(device: torch.device) -> Tensor:
    """Of torch's generator for what runs on `device`."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


class Kept:
    """Batches of images `(x_NCHW, y_N)`, or of the features that are kept in their place."""

    def __init__(self, images: Any) -> None:
        self.images = images
        self.features: Features | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Batch]:
        if self.features is None:
            yield from self.images
            return
        start = 0
        for y_N in self.images.y_N.split(self.images.batch_size):
            yield self.features.take(slice(start, start + len(y_N))), y_N
            start += len(y_N)
