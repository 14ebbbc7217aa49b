"""Images of one split that are, all but a little, in another: they make a test look better than it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from layergraft.data.image_data import Split

CHUNK = 4096  # images at a time
SIDE = 16  # pixels of the thumbnails that are compared
MOST_PAIRS = 2_000_000_000  # beyond, it would take minutes
ALIKE = 0.995  # correlation of two thumbnails from which they count as the same picture


def near_duplicates(train: Split, test: Split) -> dict[str, int | None]:
    """How many images of `test` are in `train`: `exact`, to the bit; `near`, whose thumbnail's correlation with one there
    is 0.995 or more (those that are exact among them).

    Thumbnails are 16 x 16 grey averages about their mean, so that brightness and contrast do not count: copies saved
    anew are found, crops are not, and two thin strokes alike may count. Images of one shade have no correlation; they
    count where they are exact. Of images of another size, and of more than 2e9 pairs, `near` is None. Source of the
    question: Barz & Denzler, Do we train on test data?, 2020, who compare learned features.
    """
    if train.shape != test.shape:
        return {"exact": 0, "near": None}
    there = {hash_of(image) for images in _chunks(train) for image in images}
    exact = np.array([hash_of(image) in there for images in _chunks(test) for image in images])
    near = exact | (_closest(train, test) >= ALIKE) if len(train) * len(test) <= MOST_PAIRS else None
    return {"exact": int(exact.sum()), "near": None if near is None else int(near.sum())}


def hash_of(image: np.ndarray) -> bytes:
    """16 bytes that images share which are the same, pixel by pixel."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _chunks(split: Split) -> Iterator[np.ndarray]:
    """Its images, so many at a time that a set which does not fit in memory need not."""
    return (split.images(slice(start, start + CHUNK)) for start in range(0, len(split), CHUNK))


def _closest(train: Split, test: Split) -> np.ndarray:
    """Of each image of `test`, the highest correlation with one of `train`; 0 for an image of one shade."""
    import torch
    from torch.nn import functional as F

    def thumbnails(split: Split) -> torch.Tensor:
        parts = []
        for x in map(torch.from_numpy, _chunks(split)):
            size = min(SIDE, x.shape[2]), min(SIDE, x.shape[3])
            small = F.adaptive_avg_pool2d(x.float().mean(1, keepdim=True), size).flatten(1)
            small = small - small.mean(1, keepdim=True)
            norm = small.norm(dim=1, keepdim=True)
            parts.append(torch.where(norm > 1, small / norm.clamp_min(1), 0))
        return torch.cat(parts)

    there = thumbnails(train)
    return np.asarray(torch.cat([(rows @ there.T).amax(1) for rows in thumbnails(test).split(512)]))
