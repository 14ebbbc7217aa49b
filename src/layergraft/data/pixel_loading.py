"""Where a split's images lie while they are used: on the device whole, or on the disk, from which batches are read ahead."""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from layergraft.data.image_data import Split
from layergraft.store.files import machine_memory

GIB = 2**30


class Resident:
    """All images on the device, uint8: no worker processes, no per-image Python."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.x_NCHW = torch.from_numpy(split.images()).to(device)

    def to(self, device: str | torch.device) -> Resident:
        self.x_NCHW = self.x_NCHW.to(device)
        return self

    def batches(self, index_SN: Tensor) -> Iterator[Tensor]:
        """The images of each row of `index_SN`, which lies on the device."""
        return (self.x_NCHW[index] for index in index_SN)

    def run(self, start: int, stop: int) -> Tensor:
        return self.x_NCHW[start:stop]


class Streamed:
    """Images on the disk, mapped: `readers` threads gather batches ahead of their use, into pinned memory for CUDA.

    Threads, not processes: what they do, copying rows out of a mapped file, leaves the interpreter alone, and they start
    at once (processes took longer to start than to read an epoch of 20,000 images: benchmarks/loading.py).
    """

    def __init__(self, split: Split, device: torch.device, readers: int) -> None:
        self.split, self.device, self.readers = split, device, readers

    def to(self, device: str | torch.device) -> Streamed:
        self.device = torch.device(device)
        return self

    def batches(self, index_SN: Tensor) -> Iterator[Tensor]:
        with ThreadPoolExecutor(self.readers) as pool:
            started = (pool.submit(self._gathered, index) for index in index_SN.cpu().numpy())
            ahead = deque(itertools.islice(started, 2 * self.readers))
            while ahead:
                x_NCHW = ahead.popleft().result()
                ahead.extend(itertools.islice(started, 1))
                yield x_NCHW.to(self.device, non_blocking=True)

    def _gathered(self, index_N: np.ndarray | slice) -> Tensor:
        x_NCHW = torch.from_numpy(self.split.images(index_N))
        return x_NCHW.pin_memory() if self.device.type == "cuda" else x_NCHW

    def run(self, start: int, stop: int) -> Tensor:
        return self._gathered(slice(start, stop)).to(self.device)


def pixels_on(split: Split, device: torch.device, limit_gib: float | None, readers: int) -> Resident | Streamed:
    """`split` on the device where it takes no more than `limit_gib` (None: half of what is free there)."""
    size = len(split) * int(np.prod(split.shape))
    limit = free_bytes(device) / 2 if limit_gib is None else limit_gib * GIB
    return Resident(split, device) if size <= limit else Streamed(split, device, readers)


def free_bytes(device: torch.device) -> int:
    """What is free there, or can be freed."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    facts = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+)", facts.read_text()) if facts.exists() else None
    return 1024 * int(found[1]) if found else machine_memory()  # it is in KiB


def counts(split: Split) -> np.ndarray:
    """How often each value occurs, (channels, 256)."""
    found = np.zeros((split.shape[0], 256), np.int64)
    for start in range(0, len(split), 4096):
        x_NCHW = split.images(slice(start, start + 4096))
        for channel in range(len(found)):
            found[channel] += np.bincount(x_NCHW[:, channel].ravel(), minlength=256)
    return found


Pixels = Resident | Streamed
