"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, which ship inside the package.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its test set).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layergraft.config.registry import register
from layergraft.data.data_set import DataSet, FullData


@register("data", "digits")
@dataclass
class Digits(DataSet):
    """Half of each class is the test set, a sixth validation, the rest is there to train on."""

    name: str = "digits"
    val_share: float = 1 / 3
    """Of what is not test."""
    test_share: float = 1 / 2
    """Of all."""

    def read(self) -> FullData:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        grey = np.round(images * (255 / 16)).astype(np.uint8)  # the set's values are 0 to 16
        return FullData(grey.reshape(-1, 1, 8, 8), labels.astype(np.int64), tuple("0123456789"))
