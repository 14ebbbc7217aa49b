"""Batches made on the device: gathered as uint8 (`pixel_loading`), moved, mirrored and normalised there a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from layergraft.data.class_balance import class_weights, image_weights
from layergraft.data.image_data import ImageData, Split
from layergraft.data.normalization import Normalization, Normalize
from layergraft.data.pixel_loading import Pixels, free_bytes, pixels_on
from layergraft.errors import UserError
from layergraft.metrics.tasks import Task
from layergraft.seeds import derive_seed


@dataclass(frozen=True)
class BatchSpec:
    """What a training batch is."""

    batch_size: int
    accumulate: int = 1
    """Batches that make one step."""
    shift: int = 0
    """Pixels that an image is moved by at most."""
    flip: bool = False
    """Whether half of the images are mirrored left to right."""
    mixup: float = 0.0
    """alpha of the Beta(alpha, alpha) that two images of a batch are mixed by (Zhang et al., mixup, 2018); 0: none are."""

    def steps_per_epoch(self, num_images: int) -> int:
        """Of the optimizer; the last, smaller batches of an epoch are left out."""
        return num_images // (self.batch_size * self.accumulate)

    def images_per_epoch(self, num_images: int) -> int:
        """How many of the images an epoch goes through."""
        return self.steps_per_epoch(num_images) * self.batch_size * self.accumulate


class TrainBatches:
    """Shuffled, augmented batches `(x_NCHW float, y_N)` of the training split, a new order each epoch; with `mixup` the
    labels are shares of the classes, `(N, num_classes)` float. With the balanced sampler an epoch of as many images is drawn
    with replacement. `class_weights` is for the loss.

    Order, augmentation and mixing are a function of (seed, epoch), drawn on the CPU, so that they are the same on every
    device and do not depend on what ran before. What is left of an epoch after the last full step (`accumulate`
    batches) is left out. Lightning tells the epoch through `sampler.set_epoch`, as it does to torch's own distributed
    sampler, and keeps in a checkpoint, through `state_dict`, where in the epoch it was.
    """

    def __init__(
        self, pixels: Pixels, normalize: Normalize, spec: BatchSpec, data: ImageData, seed: int, device: torch.device
    ) -> None:
        asked = f"{spec.batch_size} x optim.accumulate={spec.accumulate}" if spec.accumulate > 1 else spec.batch_size
        if len(data.train) < spec.batch_size * spec.accumulate:
            raise UserError(f"optim.batch_size is {asked}, but there are only {len(data.train)} training images")
        self.pixels, self.y_N = pixels, torch.from_numpy(data.train.y_N).to(device)
        self.normalize, self.spec, self.seed = normalize, spec, seed
        self.num_classes, self.task = data.num_classes, data.task
        self.class_weights, self.image_weights = class_weights(data), image_weights(data)
        self.epoch, self.position, self.resume_at, self.rank, self.num_ranks = 0, (0, 0), (0, 0), 0, 1
        self.features: Any = None
        """What is given in place of the images, by its `take(index_N)`; of images that are the same in every epoch."""

    @property
    def sampler(self) -> TrainBatches:
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        return dict(zip(("epoch", "batch"), self.position, strict=True))

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.resume_at = (state["epoch"], state["batch"])

    def share_out(self, rank: int, num_ranks: int) -> None:
        """From now on give only this rank's part of each batch. Raises UserError where it cannot be shared evenly."""
        if self.spec.batch_size % num_ranks:
            raise UserError(f"optim.batch_size is {self.spec.batch_size}; {num_ranks} devices cannot share it evenly")
        self.rank, self.num_ranks = rank, num_ranks

    def __len__(self) -> int:
        return self.steps_per_epoch * self.spec.accumulate

    @property
    def steps_per_epoch(self) -> int:
        return self.spec.steps_per_epoch(len(self.y_N))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        (epoch, done), self.resume_at = self.resume_at, (0, 0)
        done = done if epoch == self.epoch else 0
        batches = self.of_epoch(self.epoch, done) if self.features is None else self._of_features(self.epoch, done)
        for number, batch in enumerate(batches, done + 1):
            self.position = (self.epoch, number)
            yield batch

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of `epoch`, from the `first` on."""
        size, shift, steps = self.spec.batch_size, self.spec.shift, len(self)
        augment = torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch))
        mixing = np.random.default_rng(derive_seed(self.seed, "mixup", epoch))
        drawn = {"index": self._order(epoch)}
        if shift:
            drawn["offsets"] = torch.randint(0, 2 * shift + 1, (steps, size, 2), generator=augment)
        if self.spec.flip:
            drawn["mirrored"] = torch.randint(0, 2, (steps, size), generator=augment).bool()
        if self.spec.mixup:  # each image's partner follows the batch, changed as it is in its own right
            shares = [mixing.beta(self.spec.mixup, self.spec.mixup) for _ in range(steps)]
            partners = torch.from_numpy(np.stack([mixing.permutation(size) for _ in range(steps)]))
            rows = torch.arange(steps)[:, None]
            drawn = {name: torch.cat([of_all, of_all[rows, partners]], 1) for name, of_all in drawn.items()}
        # To the device at once: a copy for each batch would make every step wait for the one before.
        drawn = {
            name: of_all[first:, self.rank :: self.num_ranks].contiguous().to(self.y_N.device)
            for name, of_all in drawn.items()
        }
        for step, x in enumerate(self.pixels.batches(drawn["index"])):
            if shift:
                x = shifted(x, drawn["offsets"][step], shift)
            if self.spec.flip:
                x = torch.where(drawn["mirrored"][step][:, None, None, None], x.flip(3), x)
            x, y = self.normalize(x), self.y_N[drawn["index"][step]]
            if self.spec.mixup:
                part, half = shares[first + step], len(x) // 2
                y = (y if y.ndim == 2 else F.one_hot(y, self.num_classes)).float()
                x, y = (part * both[:half] + (1 - part) * both[half:] for both in (x, y))
            yield x, y

    def _order(self, epoch: int) -> Tensor:
        """Which images are in which batch, (batches, N)."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        number = len(self) * self.spec.batch_size
        if self.image_weights is None:
            chosen = torch.randperm(len(self.y_N), generator=generator)[:number]
        else:
            chosen = torch.multinomial(self.image_weights, number, replacement=True, generator=generator)
        return chosen.view(len(self), self.spec.batch_size)

    def _of_features(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index in self._order(epoch)[first:].to(self.y_N.device):
            yield self.features.take(index), self.y_N[index]

    @property
    def are_the_same_in_every_epoch(self) -> bool:
        """Whether an image is always given as it is, and whole batches to this process."""
        return not (self.spec.shift or self.spec.flip or self.spec.mixup) and self.num_ranks == 1

    def free_bytes(self) -> int:
        """What is free where the batches lie."""
        return free_bytes(self.y_N.device)

    def windows(self) -> Iterator[slice]:
        """Every image, in batches of the usual size; the last begins sooner where it would be smaller."""
        size, number = self.spec.batch_size, len(self.y_N)
        for stop in [*range(size, number, size), number]:
            yield slice(stop - size, stop)

    def at(self, window: slice) -> Tensor:
        """Those images, as they are given."""
        return self.normalize(self.pixels.run(window.start, window.stop))


def shifted(x_NCHW: Tensor, offset_N2: Tensor, shift: int) -> Tensor:
    """Each image moved by `offset - shift` rows and columns (`offset` from 0 to 2 * shift), black where nothing was."""
    n, c, h, w = x_NCHW.shape
    padded = F.pad(x_NCHW, (shift,) * 4)
    rows = (offset_N2[:, 0, None] + torch.arange(h, device=x_NCHW.device))[:, None, :, None]
    columns = (offset_N2[:, 1, None] + torch.arange(w, device=x_NCHW.device))[:, None, None, :]
    image = torch.arange(n, device=x_NCHW.device)[:, None, None, None]
    return padded[image, torch.arange(c, device=x_NCHW.device)[None, :, None, None], rows, columns]


class EvalBatches:
    """All images of a split in order, normalised; batches of up to 512."""

    batch_size = 512

    def __init__(self, pixels: Pixels, split: Split, normalize: Normalize, task: Task, device: torch.device) -> None:
        self.pixels, self.y_N = pixels, torch.from_numpy(split.y_N).to(device)
        self.normalize, self.task = normalize, task

    def first(self, number: int) -> tuple[Tensor, Tensor]:
        """The first `number` images and labels, or all where there are fewer."""
        return self.normalize(self.pixels.run(0, number)), self.y_N[:number]

    def __len__(self) -> int:
        return -(-len(self.y_N) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.y_N), self.batch_size):
            stop = start + self.batch_size
            yield self.normalize(self.pixels.run(start, stop)), self.y_N[start:stop]


@dataclass(frozen=True)
class Batches:
    """The batches of one run."""

    train: TrainBatches
    val: EvalBatches
    test: EvalBatches

    def to(self, device: str) -> Batches:
        """These, on another device."""
        for part in (self.train, self.val, self.test):
            part.pixels, part.y_N = part.pixels.to(device), part.y_N.to(device)
            part.normalize = part.normalize.to(device)
        return self

    @classmethod
    def of(
        cls, data: ImageData, spec: BatchSpec, seed: int, device: str, normalization: Normalization | None = None,
        gib: float | None = None, readers: int = 1,
    ) -> Batches:  # fmt: skip
        """Images are normalised by `normalization`, or else by their training split. Splits that take more than `gib` on the device
        (None: half of what is free) are read from the disk by so many `readers`. Raises UserError where there are fewer
        training images than a step takes."""
        where = torch.device(device)
        normalize = Normalize(normalization or Normalization.of(data.train), where)
        train, val, test = (pixels_on(split, where, gib, readers) for split in data.splits.values())
        return cls(
            TrainBatches(train, normalize, spec, data, seed, where),
            EvalBatches(val, data.val, normalize, data.task, where),
            EvalBatches(test, data.test, normalize, data.task, where),
        )
