"""Gabor filters by formula. Source: Petkov & Kruizinga 1997: envelope of one octave, aspect 0.5, zero mean."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def gabor_bank(number: int, size: int) -> Tensor:
    """`number` different filters (number, size, size): first the orientations and both phases, then shorter waves."""
    import torch

    orientations = min(8, math.ceil(number / 2))
    scales = math.ceil(number / (2 * orientations))
    half = (size - 1) / 2
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64) - half] * 2, indexing="ij")
    filters = []
    for scale, turn, phase in itertools.product(range(scales), range(orientations), (0.0, math.pi / 2)):
        wave = size / (size / 2) ** (scale / scales)  # from the kernel's size down towards 2 pixels
        angle = math.pi * turn / orientations
        along, across = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
        envelope = torch.exp(-(along**2 + (0.5 * across) ** 2) / (2 * (0.56 * wave) ** 2))
        kernel = envelope * torch.cos(2 * math.pi * along / wave + phase)
        filters.append(kernel - kernel.mean())
    return torch.stack(filters[:number])
