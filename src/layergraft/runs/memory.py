"""How much memory a run takes at most."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch


def peak_memory(device: str) -> Callable[[], int | None]:
    """Start to measure; what is returned gives the peak since then, in bytes: on CUDA what torch has allocated, on a CPU what the
    whole process takes (Linux alone; None elsewhere)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on (man 5 proc)
    except OSError:
        return lambda: None

    def peak() -> int | None:
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        return 1024 * int(found[1]) if found else None  # it is in KiB

    return peak
