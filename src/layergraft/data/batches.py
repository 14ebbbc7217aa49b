"""Batches made on the device: the whole split lies there as uint8; no worker processes, no per-image Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from layergraft.data.images import ImageData, Split
from layergraft.errors import UserError
from layergraft.seeds import stream


@dataclass(frozen=True)
class BatchSpec:
    """What a training batch is."""

    batch_size: int
    accumulate: int = 1
    """Batches that make one step."""
    shift: int = 0
    """Pixels that an image is moved by at most."""
    mixup: float = 0.0
    """alpha of the Beta(alpha, alpha) that two images of a batch are mixed by (Zhang et al., mixup, 2018); 0: none are."""


class Normalize:
    """uint8 images to float, with each channel's mean 0 and deviation 1 over the training split."""

    def __init__(self, train: Split, device: torch.device) -> None:
        pixels = torch.from_numpy(train.x_NCHW).double() / 255
        self.mean = pixels.mean((0, 2, 3)).float().view(1, -1, 1, 1).to(device)
        self.std = pixels.std((0, 2, 3)).clamp_min(1e-3).float().view(1, -1, 1, 1).to(device)

    def to(self, device: str) -> Normalize:
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        return (x_NCHW.float() / 255 - self.mean) / self.std


class TrainBatches:
    """Shuffled, augmented batches `(x_NCHW float, y_N)` of a split, a new order each epoch; with `mixup` the labels are
    shares of the classes, `(N, num_classes)` float.

    Order, augmentation and mixing are a function of (seed, epoch), drawn on the CPU, so that they are the same on every
    device and do not depend on what ran before. What is left of an epoch after the last full step (`accumulate`
    batches) is left out. Lightning tells the epoch through `sampler.set_epoch`, as it does to torch's own distributed
    sampler, and keeps in a checkpoint, through `state_dict`, where in the epoch it was.
    """

    def __init__(
        self, split: Split, normalize: Normalize, spec: BatchSpec, num_classes: int, seed: int, device: torch.device
    ) -> None:
        per_step = spec.batch_size * spec.accumulate
        if len(split) < per_step:
            times = f" x optim.accumulate={spec.accumulate}" if spec.accumulate > 1 else ""
            raise UserError(
                f"optim.batch_size is {spec.batch_size}{times}, but there are only {len(split)} training images"
            )
        self.x_NCHW = torch.from_numpy(split.x_NCHW).to(device)
        self.y_N = torch.from_numpy(split.y_N).to(device)
        self.normalize, self.spec, self.num_classes, self.seed = normalize, spec, num_classes, seed
        self.epoch, self.position, self.resume_at, self.rank, self.num_ranks = 0, (0, 0), (0, 0), 0, 1

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
        return len(self.y_N) // (self.spec.batch_size * self.spec.accumulate) * self.spec.accumulate

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        (epoch, done), self.resume_at = self.resume_at, (0, 0)
        done = done if epoch == self.epoch else 0
        for number, batch in enumerate(self.of_epoch(self.epoch)):
            if number >= done:
                self.position = (self.epoch, number + 1)
                yield batch

    def of_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of `epoch`, all of them."""
        size, shift, steps = self.spec.batch_size, self.spec.shift, len(self)
        order = torch.Generator().manual_seed(stream(self.seed, "order", epoch))
        augment = torch.Generator().manual_seed(stream(self.seed, "augment", epoch))
        mixing = np.random.default_rng(stream(self.seed, "mixup", epoch))
        index = torch.randperm(len(self.y_N), generator=order)[: steps * size].view(steps, size)
        offsets = torch.randint(0, 2 * shift + 1, (steps, size, 2), generator=augment) if shift else None
        # To the device at once: a copy for each batch would make every step wait for the one before.
        mine, device = slice(self.rank, None, self.num_ranks), self.y_N.device
        drawn = [self._to_device(index, offsets, mine, device)]
        if self.spec.mixup:
            parts = [mixing.beta(self.spec.mixup, self.spec.mixup) for _ in range(steps)]
            partners = torch.stack([torch.from_numpy(mixing.permutation(size)) for _ in range(steps)])
            moved = None if offsets is None else offsets.gather(1, partners[:, :, None].expand(-1, -1, 2))
            drawn.append(self._to_device(index.gather(1, partners), moved, mine, device))
        for step in range(steps):
            (x, y), *other = [self._images(which[step], None if to is None else to[step]) for which, to in drawn]
            if other:
                ((other_x, other_y),) = other
                x = parts[step] * x + (1 - parts[step]) * other_x
                shares = [F.one_hot(labels, self.num_classes).float() for labels in (y, other_y)]
                y = parts[step] * shares[0] + (1 - parts[step]) * shares[1]
            yield x, y

    @staticmethod
    def _to_device(
        index_SN: Tensor, offset_SN2: Tensor | None, mine: slice, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """This rank's part of what was drawn for all steps S of an epoch."""
        return index_SN[:, mine].to(device), None if offset_SN2 is None else offset_SN2[:, mine].to(device)

    def _images(self, index_N: Tensor, offset_N2: Tensor | None) -> tuple[Tensor, Tensor]:
        """The images at `index_N`, moved by their offsets, and their labels."""
        x = self.x_NCHW[index_N]
        if offset_N2 is not None:
            x = shifted(x, offset_N2, self.spec.shift)
        return self.normalize(x), self.y_N[index_N]


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

    def __init__(self, split: Split, normalize: Normalize, device: torch.device) -> None:
        self.x_NCHW = torch.from_numpy(split.x_NCHW).to(device)
        self.y_N = torch.from_numpy(split.y_N).to(device)
        self.normalize = normalize

    def first(self, number: int) -> tuple[Tensor, Tensor]:
        """The first `number` images and labels, or all where there are fewer."""
        return self.normalize(self.x_NCHW[:number]), self.y_N[:number]

    def __len__(self) -> int:
        return -(-len(self.y_N) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(self.x_NCHW.split(self.batch_size), self.y_N.split(self.batch_size), strict=True):
            yield self.normalize(x), y


@dataclass(frozen=True)
class Batches:
    """The batches of one run."""

    train: TrainBatches
    val: EvalBatches
    test: EvalBatches

    def to(self, device: str) -> Batches:
        """These, on another device."""
        for part in (self.train, self.val, self.test):
            part.x_NCHW, part.y_N = part.x_NCHW.to(device), part.y_N.to(device)
            part.normalize = part.normalize.to(device)
        return self

    @classmethod
    def of(cls, data: ImageData, spec: BatchSpec, seed: int, device: str) -> Batches:
        """Raises UserError where there are fewer training images than a step takes."""
        where = torch.device(device)
        normalize = Normalize(data.train, where)
        return cls(
            TrainBatches(data.train, normalize, spec, data.num_classes, seed, where),
            EvalBatches(data.val, normalize, where),
            EvalBatches(data.test, normalize, where),
        )
