"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, which ship inside the package.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its test set).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from layergraft.data.images import ImageData, Split, few_shot, fingerprint, keep_classes
from layergraft.schema import register
from layergraft.specs import DataSpec


@register("data", "digits")
@dataclass
class Digits(DataSpec):
    """Half of each class is the test set, a sixth validation, the rest is there to train on; the same for every seed."""

    name: str = "digits"

    def load(self, seed: int) -> ImageData:
        """The three splits; `seed` draws which images are in a few-shot training split, nothing else."""
        train, val, test = (keep_classes(split, self) for split in _splits())
        return ImageData(
            train=few_shot(train, self, seed),
            val=val,
            test=test,
            num_classes=int(test.y_N.max()) + 1,
            fingerprint=_fingerprint(),
        )


@lru_cache(maxsize=1)
def _splits() -> tuple[Split, Split, Split]:
    """What there is to train on, validation and test, of all classes.

    Split before classes are chosen: a donor of some classes then never learns on test images of a host of others.
    """
    from sklearn.model_selection import train_test_split

    whole = _read()
    rest, test = train_test_split(np.arange(len(whole)), test_size=1 / 2, stratify=whole.y_N, random_state=0)
    pool, val = train_test_split(rest, test_size=1 / 3, stratify=whole.y_N[rest], random_state=0)
    return whole.take(pool), whole.take(val), whole.take(test)


@lru_cache(maxsize=1)
def _fingerprint() -> str:
    return fingerprint(_read())


@lru_cache(maxsize=1)
def _read() -> Split:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grey = np.round(images * (255 / 16)).astype(np.uint8)  # the set's values are 0 to 16
    return Split(grey.reshape(-1, 1, 8, 8), labels.astype(np.int64))
