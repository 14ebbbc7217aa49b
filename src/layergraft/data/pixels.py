"""Where a split's images lie while they are used: on the device whole, or on the disk, from which batches are read ahead."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layergraft.data.images import Split

GIB = 2**30


class Resident:
    """All images on the device, uint8: no worker processes, no per-image Python."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.x_NCHW = torch.from_numpy(split.x_NCHW).to(device)

    def to(self, device: str | torch.device) -> Resident:
        self.x_NCHW = self.x_NCHW.to(device)
        return self

    def batches(self, index_SN: Tensor) -> Iterator[Tensor]:
        """The images of each row of `index_SN`, which lies on the device."""
        return (self.x_NCHW[index] for index in index_SN)

    def run(self, start: int, stop: int) -> Tensor:
        return self.x_NCHW[start:stop]


class Streamed:
    """Images on the disk, mapped: `readers` processes gather each batch ahead of its use, in pinned memory for CUDA."""

    def __init__(self, split: Split, device: torch.device, readers: int) -> None:
        self.split, self.device, self.readers = split, device, readers

    def to(self, device: str | torch.device) -> Streamed:
        self.device = torch.device(device)
        return self

    def batches(self, index_SN: Tensor) -> Iterator[Tensor]:
        # What lies in memory would have to be copied to every reader.
        readers = self.readers if isinstance(self.split.source_NCHW, np.memmap) else 0
        loader = DataLoader(
            _Gather(self.split),
            batch_size=None,
            sampler=[index.numpy() for index in index_SN.cpu()],
            num_workers=readers,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="forkserver" if readers else None,
        )
        return (x_NCHW.to(self.device, non_blocking=True) for x_NCHW in loader)

    def run(self, start: int, stop: int) -> Tensor:
        return torch.from_numpy(self.split.images(slice(start, stop))).to(self.device)


class _Gather(Dataset):
    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, index_N: np.ndarray) -> Tensor:
        return torch.from_numpy(self.split.images(index_N))


def place(split: Split, device: torch.device, limit_gib: float | None, readers: int) -> Resident | Streamed:
    """`split` on the device where it takes no more than `limit_gib` (None: half of what is free there)."""
    size = len(split) * int(np.prod(split.shape))
    limit = _free(device) / 2 if limit_gib is None else limit_gib * GIB
    return Resident(split, device) if size <= limit else Streamed(split, device, readers)


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def counts(split: Split) -> np.ndarray:
    """How often each value occurs, (channels, 256)."""
    found = np.zeros((split.shape[0], 256), np.int64)
    for start in range(0, len(split), 4096):
        x_NCHW = split.images(slice(start, start + 4096))
        for channel in range(len(found)):
            found[channel] += np.bincount(x_NCHW[:, channel].ravel(), minlength=256)
    return found


Pixels = Resident | Streamed
