"""Whether a network whose weights a run takes has seen images that the run is selected or judged by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from layergraft.config.data_schema import DataSpec
from layergraft.data.data_set import DataSet
from layergraft.data.duplicates import hash_of
from layergraft.data.image_data import ImageData
from layergraft.errors import UserError

SEEN = ("train", "val")  # by which a network is trained and selected
# Split of the target -> the splits of a source that must have none of its images. That both are selected on the same validation images is
# no leak: nothing was trained on them.
APART = {"val": ("train",), "test": SEEN}
OF_A_HOST = {"train": SEEN, "val": SEEN, "test": SEEN}  # of its own pretraining a target shall have no image at all
THE_HOST = "the host"
DECODED = ("size", "channels")  # fields of a source that change its pixels, not its files
IN_WORDS = {"train": "training", "val": "validation", "test": "test"}
_HASHES: dict[str, np.ndarray] = {}  # fingerprint of a set -> a hash of each image: runs of a sweep ask again and again


@dataclass(frozen=True)
class Learned:
    """Images that a network is trained on, and the keys that choose them."""

    who: str
    """The network: `the donor`."""
    at: str
    """The key of its data set: `donor.data`."""
    data: DataSpec
    seed: int
    """The one that draws what `data` leaves to chance."""
    images: ImageData

    def changed(self, changes: dict[str, Any]) -> Learned:
        """The same with other values of the data set's keys. Raises UserError for values that cannot be."""
        data = replace(self.data, **changes)
        return replace(self, data=data, images=data.load(self.seed))

    def overrides(self, changes: dict[str, Any]) -> list[str]:
        return [f"{self.at}.{key}={value}" for key, value in changes.items() if getattr(self.data, key) != value]


def leak(source: Learned, target: Learned) -> str | None:
    """Say which images of `target`, and how many of which split, `source` has seen; None where it has seen none. The same row of
    the same set counts, and the same pixels of another, before any corruption."""
    told: dict[str, list[str]] = {}
    for (seen, part), number in _shared(source, target).items():
        told.setdefault(seen, []).append(f"{number} of the {len(target.images.splits[part])} {IN_WORDS[part]} images")
    splits = [f"{IN_WORDS[seen]} split has {' and '.join(parts)} of {target.at}" for seen, parts in told.items()]
    return f"{source.who}'s {', and its '.join(splits)}" if splits else None


def advice(source: Learned, target: Learned) -> str:
    """The keys that separate the two: the first that do of the same splits for both, and two halves of the images."""
    same: dict[str, Any] = {"split_seed": target.data.split_seed or 0}
    shares: dict[str, Any] = {"val_share": target.data.val_share, "test_share": target.data.test_share}
    a, b = (dict[str, Any](half=half, halves="images") for half in "AB")
    ways = [
        (same, same),
        (same | shares, same),
        (a, b),
        (a | shares, b),
        (a | shares | {"halves_seed": target.data.halves_seed}, b),
    ]
    same_set = source.images.fingerprint == target.images.fingerprint or _same_files(source.data, target.data)
    for of_source, of_target in ways if same_set else ():
        try:
            mended = not _shared(source.changed(of_source), target.changed(of_target))
        except UserError:  # too few images
            continue
        if mended:
            keys = dict.fromkeys([*target.overrides(of_target), *source.overrides(of_source)])
            return f"to separate them give {' '.join(keys)}"
    return f"to separate them choose other images in {source.at} or in {target.at}"


def _shared(source: Learned, target: Learned) -> dict[tuple[str, str], int]:
    """(split of `source`, split of `target`) -> how many images of the latter are in the former and must not be; only where there are
    some."""
    ids = _ids(source, target)
    if ids is None:
        return {}
    of_source, of_target = ids
    apart, found = OF_A_HOST if source.who == THE_HOST else APART, {}
    for seen in SEEN:
        is_there = np.zeros(1 + max(of_source.max(), of_target.max()), bool)
        is_there[of_source[source.images.splits[seen].rows]] = True
        for part in (part for part, others in apart.items() if seen in others):
            found[seen, part] = int(is_there[of_target[target.images.splits[part].rows]].sum())
    return {where: number for where, number in found.items() if number}


def _same_files(source: DataSpec, target: DataSpec) -> bool:
    """Whether both are read from the same files, be they decoded to another size or number of channels."""
    known = [spec.source() if isinstance(spec, DataSet) else None for spec in (source, target)]
    read = [of and {name: value for name, value in of.items() if name not in DECODED} for of in known]
    return type(source) is type(target) and read[0] is not None and read[0] == read[1]


def _ids(learned: Learned, run: Learned) -> tuple[np.ndarray, np.ndarray] | None:
    """A number for each image of both sets, in their files' order, that images which are the same share; None where none can be."""
    source, target = learned.images, run.images
    of_source, of_target = source.originals_NCHW, target.originals_NCHW
    if of_source is None or of_target is None:
        return None  # given as arrays, not read by a spec
    same = source.fingerprint == target.fingerprint or _same_files(learned.data, run.data)
    if same and len(of_source) == len(of_target):
        return np.arange(len(of_source)), np.arange(len(of_target))
    if of_source.shape[1:] != of_target.shape[1:]:
        return None
    for data in (source, target):
        if data.fingerprint not in _HASHES:
            assert data.originals_NCHW is not None
            hashes = b"".join(hash_of(image)[:8] for image in data.originals_NCHW)
            _HASHES[data.fingerprint] = np.frombuffer(hashes, np.uint64)
    return _matched(source.fingerprint, target.fingerprint)


@lru_cache(maxsize=16)
def _matched(source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    both = np.concatenate([_HASHES[source], _HASHES[target]])
    ids = np.unique(both, return_inverse=True)[1].ravel()
    return ids[: len(_HASHES[source])], ids[len(_HASHES[source]) :]
