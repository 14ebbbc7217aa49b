"""Whether a network that is trained on some images has seen images of a run's own splits."""

from __future__ import annotations

import numpy as np

from layergraft.data.duplicates import hash_of
from layergraft.data.image_data import ImageData
from layergraft.errors import UserError

SEEN = ("train", "val")  # by which a network is trained and selected
_HASHES: dict[str, np.ndarray] = {}  # fingerprint of a set -> a hash of each image: runs of a sweep ask again and again


def require_disjoint(where: str, source: ImageData, target: ImageData) -> None:
    """Raise UserError, naming the split to change, where an image of the training or validation split of `source`, whose key is
    `where`, is in a split of `target`: the same row of the same set, or the same pixels of another, before any corruption."""
    is_same_set = source.fingerprint == target.fingerprint
    of = _rows if is_same_set else _hashes
    seen = np.concatenate([of(source, part) for part in SEEN])
    halves = f"give {where}.half=A {where}.halves=images data.half=B data.halves=images, and both the same shares and split_seed"
    instead = halves if is_same_set else f"choose other images in {where} or in data"
    shared = {part: len(np.intersect1d(of(target, part), seen)) for part in target.splits}
    if any(shared.values()):
        told = ", ".join(f"{number} of its {part} split" for part, number in shared.items() if number)
        raise UserError(f"{where} would train the host on images of data: {told}; to separate them {instead}")


def _rows(data: ImageData, part: str) -> np.ndarray:
    return data.splits[part].rows


def _hashes(data: ImageData, part: str) -> np.ndarray:
    images = data.originals_NCHW
    assert images is not None  # of a set that was read by its spec
    if data.fingerprint not in _HASHES:
        shape = repr(images.shape[1:]).encode()
        _HASHES[data.fingerprint] = np.array([hash_of(image) + shape for image in images])
    hashes: np.ndarray = _HASHES[data.fingerprint][data.splits[part].rows]
    return hashes
