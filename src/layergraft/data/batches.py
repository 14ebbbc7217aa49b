"""Batches made on the device: the whole split lies there as uint8; no worker processes, no per-image Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from layergraft.data.images import ImageData, Split
from layergraft.errors import UserError
from layergraft.seeds import stream


class Normalize:
    """uint8 images to float, with each channel's mean 0 and deviation 1 over the training split."""

    def __init__(self, train: Split, device: torch.device) -> None:
        pixels = torch.from_numpy(train.x_NCHW).double() / 255
        self.mean = pixels.mean((0, 2, 3)).float().view(1, -1, 1, 1).to(device)
        self.std = pixels.std((0, 2, 3)).clamp_min(1e-3).float().view(1, -1, 1, 1).to(device)

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        return (x_NCHW.float() / 255 - self.mean) / self.std


class TrainBatches:
    """Shuffled, augmented batches `(x_NCHW float, y_N)` of a split, a new order each epoch.

    Order and augmentation are a function of (seed, epoch), drawn on the CPU, so that they are the same on every
    device and do not depend on what ran before. The last, smaller batch of an epoch is left out. Lightning tells
    the epoch through `sampler.set_epoch`, as it does to torch's own distributed sampler.
    """

    def __init__(
        self, split: Split, normalize: Normalize, batch_size: int, shift: int, seed: int, device: torch.device
    ) -> None:
        if len(split) < batch_size:
            raise UserError(f"optim.batch_size is {batch_size}, but there are only {len(split)} training images")
        self.x_NCHW = torch.from_numpy(split.x_NCHW).to(device)
        self.y_N = torch.from_numpy(split.y_N).to(device)
        self.normalize, self.batch_size, self.shift, self.seed, self.epoch = normalize, batch_size, shift, seed, 0

    @property
    def sampler(self) -> TrainBatches:
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.y_N) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.Generator().manual_seed(stream(self.seed, "order", self.epoch))
        augment = torch.Generator().manual_seed(stream(self.seed, "augment", self.epoch))
        index_N = torch.randperm(len(self.y_N), generator=order)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            index = index_N[start : start + self.batch_size].to(self.y_N.device)
            x = self.x_NCHW[index]
            if self.shift:
                x = shifted(x, torch.randint(0, 2 * self.shift + 1, (len(index), 2), generator=augment), self.shift)
            yield self.normalize(x), self.y_N[index]


def shifted(x_NCHW: Tensor, offset_N2: Tensor, shift: int) -> Tensor:
    """Each image moved by `offset - shift` rows and columns (`offset` from 0 to 2 * shift), black where nothing was."""
    n, c, h, w = x_NCHW.shape
    offset_N2 = offset_N2.to(x_NCHW.device)
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

    @classmethod
    def of(cls, data: ImageData, batch_size: int, shift: int, seed: int, device: str) -> Batches:
        """Raises UserError where there are fewer training images than a batch takes."""
        where = torch.device(device)
        normalize = Normalize(data.train, where)
        return cls(
            TrainBatches(data.train, normalize, batch_size, shift, seed, where),
            EvalBatches(data.val, normalize, where),
            EvalBatches(data.test, normalize, where),
        )
