"""Gabor filters by formula, and features of images by them, that depend on no training: what data sets are compared on
before there is a network. Source: Petkov & Kruizinga 1997: envelope of one octave, aspect 0.5, zero mean."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 32  # pixels a side that images are brought to
ORIENTATIONS, SCALES, KERNEL = 8, 3, 9
OPPONENT = [[1 / 3, 1 / 3, 1 / 3], [0.5, -0.5, 0.0], [0.25, 0.25, -0.5]]  # grey, red-green, yellow-blue


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


def gabor_features(x_NCHW: np.ndarray) -> Tensor:
    """(N, 300) float64 features of uint8 images: over each quarter of the image the mean magnitude of the responses to
    Gabor filters of 8 orientations and 3 scales in grey, red-green and yellow-blue, and those channels' means.

    Source: Manjunath & Ma, Texture features for browsing and retrieval of image data, 1996, on quarters rather than the
    whole, so that shape counts as well.
    """
    import torch
    from torch.nn import functional as F

    # Even and odd filters in turn; 9 x 9 so that the shortest waves, of about 3 pixels, have room.
    bank = gabor_bank(2 * ORIENTATIONS * SCALES, KERNEL).float()[:, None]
    found = []
    for x in torch.from_numpy(x_NCHW).split(256):
        x = x.float() / 255
        x = F.interpolate(x.expand(-1, 3, -1, -1), (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        colours = torch.einsum("oc,nchw->nohw", torch.tensor(OPPONENT), x)
        planes = F.pad(colours.flatten(0, 1)[:, None], (KERNEL // 2,) * 4, mode="reflect")
        responses = F.conv2d(planes, bank)
        magnitude = (responses[:, ::2].square() + responses[:, 1::2].square()).sqrt()
        quarters = torch.cat([magnitude, colours.flatten(0, 1)[:, None]], 1)
        found.append(F.adaptive_avg_pool2d(quarters, 2).reshape(len(x), -1).double())
    return torch.cat(found)
