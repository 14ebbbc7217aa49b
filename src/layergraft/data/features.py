"""Features of images that depend on no training: what data sets are compared on before there is a network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from layergraft.data.gabor import gabor_bank

SIZE = 32  # pixels a side that images are brought to
ORIENTATIONS, SCALES, KERNEL = 8, 3, 9
OPPONENT = [[1 / 3, 1 / 3, 1 / 3], [0.5, -0.5, 0.0], [0.25, 0.25, -0.5]]  # grey, red-green, yellow-blue


def gabor_features(x_NCHW: np.ndarray) -> Tensor:
    """(N, 300) float64 features of uint8 images: over each quarter of the image the mean magnitude of the responses to
    Gabor filters of 8 orientations and 3 scales in grey, red-green and yellow-blue, and those channels' means.

    Source: Manjunath & Ma, Texture features for browsing and retrieval of image data, 1996, on quarters rather than the
    whole, so that shape counts as well.
    """
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
