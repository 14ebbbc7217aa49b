"""uint8 images to floats that networks take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layergraft.data.image_data import Split
from layergraft.data.pixel_loading import counts
from layergraft.errors import require


@dataclass(frozen=True)
class Normalization:
    """The mean and the deviation of each channel, of images from 0 to 1, which are taken off and divided by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, split: Split) -> Normalization:
        """That which gives each channel mean 0 and deviation 1 over `split`."""
        count_C256, values = counts(split), np.arange(256) / 255
        number = count_C256.sum(1)
        mean = count_C256 @ values / number
        variance = (count_C256 * (values - mean[:, None]) ** 2).sum(1) / np.maximum(number - 1, 1)
        return cls(tuple(mean.tolist()), tuple(np.maximum(variance**0.5, 1e-3).tolist()))

    def as_record(self) -> dict[str, list[float]]:
        return {"mean": list(self.mean), "std": list(self.std)}


def chosen(spec: Any, train: Split, known: Normalization | None) -> Normalization:
    """What `data.normalize`, `spec`, stands for: `train` is the training split, `known` is what the host's weights were trained
    with, if that is known."""
    if isinstance(spec, list):
        return Normalization(tuple(map(float, spec[0])), tuple(map(float, spec[1])))
    return known if spec == "auto" and known is not None else Normalization.of(train)


def require_channels(at: str, spec: Any, channels: int) -> None:
    """Raise UserError where `at`.normalize is for images of another number of channels."""
    given = len(spec[0]) if isinstance(spec, list) else channels
    require(given == channels, f"{at}.normalize has {given} means, but the images have {channels} channels")


class Normalize:
    """Images on a device, normalised."""

    def __init__(self, by: Normalization, device: torch.device) -> None:
        self.by = by
        self.mean, self.std = (
            torch.tensor(x, dtype=torch.float32, device=device).view(1, -1, 1, 1) for x in (by.mean, by.std)
        )

    def to(self, device: str) -> Normalize:
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        return (x_NCHW.float() / 255 - self.mean) / self.std
