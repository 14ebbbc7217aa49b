"""What went wrong with a run: its own doing, or something that may pass if it is tried again."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from layergraft.errors import DISK_FULL, RunFailed

MEMORY, MACHINE = "out of memory", "the machine"  # kinds of what may pass; the first with fewer neighbours on the GPU
PASSING = (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.EREMOTEIO)
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|ALLOC(ATION)?_FAILED"
    # What CUDA's libraries say if there is no memory left for themselves.
    r"|(CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED|unable to find an engine to execute"
)
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")  # safetensors has its own errors


class DiskFull(RunFailed):
    """What a run writes cannot be written; it goes on from its checkpoint once there is room."""


def transient(error: BaseException) -> str | None:
    """MEMORY or MACHINE for what may pass; None for what would happen again."""
    for cause in _chain(error):
        told = isinstance(cause, RuntimeError) and OUT_OF_MEMORY.search(str(cause))
        if told or isinstance(cause, (MemoryError, torch.OutOfMemoryError)):
            return MEMORY
        passes = isinstance(cause, OSError) and cause.errno in PASSING
        if passes or isinstance(cause, (ConnectionError, TimeoutError, torch.AcceleratorError)):
            return MACHINE
    return None


def is_full(error: BaseException) -> bool:
    """Whether `error` came of a disk that is full, or of a quota."""
    return any((isinstance(c, OSError) and c.errno in DISK_FULL) or NO_SPACE.search(str(c)) for c in _chain(error))


def disk_full(outputs: Path) -> DiskFull:
    return DiskFull(f"the disk of {outputs} is full; once there is room the same command goes on where it was")


def spoils_its_process(error: BaseException) -> bool:
    """Whether the process is of no further use: after some errors CUDA answers nothing but errors."""
    of_gpu = [cause for cause in _chain(error) if isinstance(cause, torch.AcceleratorError)]
    return any(not isinstance(cause, torch.OutOfMemoryError) for cause in of_gpu)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
