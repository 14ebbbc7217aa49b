"""Images of one split that are, all but a little, in another: they make a test look better than it is."""

from __future__ import annotations

import numpy as np

from layergraft.data.images import Split

SIDE = 16  # pixels of the thumbnails that are compared
ALIKE = 0.99  # correlation of two thumbnails from which they count as the same picture


def near_duplicates(train: Split, test: Split) -> dict[str, int]:
    """How many images of `test` are in `train`: `exact`, to the bit; `near`, whose thumbnail's correlation with one there
    is 0.99 or more (those that are exact among them).

    Thumbnails are 16 x 16 grey averages about their mean, so that brightness and contrast do not count: copies saved
    anew are found, crops are not, and two thin strokes alike may count. Images of one shade have no correlation; they
    count where they are exact. Source of the question: Barz & Denzler, Do we
    train on test data?, 2020, who compare learned features.
    """
    if train.shape != test.shape:
        return {"exact": 0, "near": 0}
    there, x_NCHW = {image.tobytes() for image in train.x_NCHW}, test.x_NCHW
    exact = [image.tobytes() in there for image in x_NCHW]
    return {"exact": sum(exact), "near": int(((_closest(train.x_NCHW, x_NCHW) >= ALIKE) | exact).sum())}


def _closest(train_NCHW: np.ndarray, test_NCHW: np.ndarray) -> np.ndarray:
    """Of each image of `test`, the highest correlation with one of `train`; 0 for an image of one shade."""
    import torch
    from torch.nn import functional as F

    def thumbnails(x_NCHW: np.ndarray) -> torch.Tensor:
        parts = []
        for x in torch.from_numpy(x_NCHW).split(4096):
            small = F.adaptive_avg_pool2d(
                x.float().mean(1, keepdim=True), [min(SIDE, side) for side in x.shape[2:]]
            ).flatten(1)
            small = small - small.mean(1, keepdim=True)
            norm = small.norm(dim=1, keepdim=True)
            parts.append(torch.where(norm > 1, small / norm.clamp_min(1), 0))
        return torch.cat(parts)

    a, b = thumbnails(train_NCHW), thumbnails(test_NCHW)
    best = [(rows @ a.T).amax(1) for rows in b.split(512)]
    return np.asarray(torch.cat(best))
