"""Where and in what arithmetic to train. Without Lightning: what only looks at a run does not import it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from layergraft.config.schema import Device, Precision
from layergraft.errors import require

WIDEST = 512  # channels of a convolution; on a CPU, of it and wider ones, channels-first is faster
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"


def lacks_bf16() -> bool:
    """Whether this GPU has no bf16 in hardware (compute capability below 8.0: a T4, a V100), where torch emulates it slowly."""
    return torch.cuda.get_device_capability() < (8, 0)


@dataclass(frozen=True)
class Backend:
    """Where and in what arithmetic to train, after `auto` has been resolved: cpu or cuda, float32 or bf16_mixed."""

    device: str
    precision: str
    devices: int = 1  # processes that share each batch
    compile: bool = False
    channels_last: bool | None = False
    """Whether a pixel's channels lie side by side in memory; None: where that was measured to be faster."""
    features_gib: float | None = 0.0
    """What may be kept of what a frozen prefix gives; None: a tenth of what is free on the device."""
    beside: int = 1  # runs that share the device, or the machine's memory

    @classmethod
    def resolve(cls, device: Device, precision: Precision) -> Backend:
        """Raises UserError where CUDA is asked for and there is none."""
        there = torch.cuda.is_available()
        name = ("cuda" if there else "cpu") if device is Device.auto else device.name
        none = "exec asks for CUDA, but torch sees no CUDA device here; exec=auto or exec=cpu does without"
        require(there or name == "cpu", none)
        if precision is Precision.auto:
            in_hardware = name == "cuda" and not lacks_bf16()
            precision = Precision.bf16_mixed if in_hardware else Precision.float32
        return cls(name, precision.name)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Within, float32 on CUDA is float32: cuDNN's default would make convolutions 10-bit (TF32).

        And torch asks the CUDA runtime whether there is a GPU, not NVML, as Lightning sets on import: every step of an
        optimizer asks, and NVML is a library that is opened each time where there is none (0.05 to 0.3 ms).
        """
        before, nvml = torch.backends.cudnn.allow_tf32, os.environ.pop(NVML_CHECK, None)
        torch.backends.cudnn.allow_tf32 = before and self.precision != "float32"
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = before
            if nvml is not None:
                os.environ[NVML_CHECK] = nvml

    def lay_out(self, network: nn.Module) -> None:
        """Put the weights of `network` in the order in memory that it is to train in; `nn.Module.to` undoes it.

        By benchmarks/memory_format.py: bf16 on a GPU wants its channels last; so do all hosts on a CPU but the widest, of whose
        large kernels oneDNN makes another order each time.
        """
        last = self.channels_last
        if last is None and self.device == "cuda":
            last = self.precision != "float32"
        elif last is None:
            large = (m for m in network.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1)
            last = all(min(conv.in_channels, conv.out_channels) < WIDEST for conv in large)
        network.to(memory_format=torch.channels_last if last else torch.contiguous_format)
