"""From a whole set to the part of it that a run uses: splits, classes, few-shot, corruptions; all explicit, by seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from layergraft.config.data_schema import PARTS, DataSpec
from layergraft.config.registry import Hashable, canonical, hashable
from layergraft.data.corruptions import corrupted, flipped_labels, of_pixels
from layergraft.data.few_shot import few_shot, mix_note
from layergraft.data.image_data import ImageData, Split
from layergraft.errors import UserError, require, unknown
from layergraft.metrics.tasks import Task
from layergraft.seeds import derive_seed
from layergraft.store.files import digest

TRAIN, VAL, TEST = range(3)
SPLITS_KEPT = 64  # of each cache: a sweep comes back to the splits of each of its seeds
FIRST_SPLIT = 0  # the split_seed of the splits that halves of the images are drawn from


@dataclass(frozen=True)
class FullData:
    """A set as it is in its files."""

    x_NCHW: np.ndarray
    """uint8, in memory or mapped from a file."""
    y_N: np.ndarray
    """int64, indices into `class_names`; of a multi-label set (N, labels) of 0 and 1."""
    class_names: tuple[str, ...]
    part_N: np.ndarray | None = None
    """Which of PARTS each image is in, by the set's own splits; None: it has none."""
    task: Task = Task.multi_class
    pixels: str | None = None
    """A hash of the images, where it is known; None: it is made of them."""
    group_N: np.ndarray | None = None
    """Images of one group, such as a patient, stay in one split; None: each by itself."""
    skipped: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Of images, labels and splits, bit for bit."""
        content = hashlib.sha256(repr((self.x_NCHW.shape, self.y_N.shape, self.task.name)).encode())
        content.update((self.pixels or hash_of_pixels(self.x_NCHW)).encode())
        groups = None if self.group_N is None else np.unique(self.group_N, return_inverse=True)[1]
        for array in (self.y_N, self.part_N, groups):
            content.update(b"" if array is None else np.ascontiguousarray(array).data)
        return digest(content.digest())

    def drawn(self, resplit: str | None) -> tuple[str, ...]:
        """The splits that must be drawn, as the set does not have them, or one of its own is divided anew."""
        if self.part_N is None or resplit is not None:
            return PARTS
        return () if VAL in self.part_N else PARTS[:TEST]


class DataSet(DataSpec):
    """What kinds of data sets share: they say how to `read` theirs, and which halves of the classes have a meaning."""

    @property
    def semantic(self) -> dict[str, list[int]]:
        return {}

    def read(self) -> FullData:
        """The set as it is in its files. Raises UserError where it is not there or cannot be read."""
        raise NotImplementedError

    def load(self, seed: int) -> ImageData:
        """The three splits. `seed`, that of the network which is trained on them, draws those that the set does not have, the images of
        a few-shot training split, and which labels are flipped; `split_seed` and `few_shot_seed` take its place where they are set.

        Raises UserError for what the set does not have.
        """
        is_few = self.train_size is not None or self.train_per_class is not None
        split_seed = seed if self.split_seed is None else self.split_seed
        few_seed = seed if self.few_shot_seed is None else self.few_shot_seed
        is_drawn = len(_whole(self._kind()).drawn(self.resplit)) > 0  # else all seeds have the same splits
        return _loaded(
            hashable(self),
            split_seed if is_drawn else FIRST_SPLIT,
            few_seed if is_few else None,
            seed if self.corrupt.labels > 0 else 0,
        )

    def source(self) -> dict[str, Any]:
        """The fields of this kind alone: what decides what is read."""
        shared = {item.name for item in fields(DataSpec)}
        return {name: value for name, value in canonical(self).items() if name == "name" or name not in shared}

    def _kind(self) -> Hashable:
        """What the caches know the whole set by."""
        return Hashable(json.dumps(self.source()) + type(self).__name__, self)


@lru_cache(maxsize=8)
def _whole(hashable: Hashable) -> FullData:
    whole: FullData = hashable.spec.read()
    require_sound(whole, hashable.spec.name)
    return whole


@lru_cache(maxsize=SPLITS_KEPT)
def _rows(
    hashable: Hashable, val_share: float, test_share: float, split_seed: int, resplit: str | None
) -> tuple[np.ndarray, ...]:
    return split_rows(_whole(hashable), hashable.spec.name, val_share, test_share, split_seed, resplit)


@lru_cache(maxsize=SPLITS_KEPT)
def _half(
    hashable: Hashable, val_share: float, test_share: float, resplit: str | None, half: str, halves_seed: int
) -> np.ndarray:
    """The rows of half A or B of the images, whatever the `split_seed`: networks that learn on two halves have no image in common. It
    is drawn from each split of FIRST_SPLIT, with the same share of every class."""
    first = _rows(hashable, val_share, test_share, FIRST_SPLIT, resplit)
    whole, name = _whole(hashable), hashable.spec.name
    return np.concatenate([half_of_images(rows, whole, name, half, halves_seed) for rows in first])


@lru_cache(maxsize=8)
def _pixels(hashable: Hashable, what: Hashable) -> np.ndarray:
    return corrupted(_whole(hashable).x_NCHW, what.spec, hashable.spec.name)


@lru_cache(maxsize=SPLITS_KEPT)
def _loaded(hashable: Hashable, split_seed: int, few_shot_seed: int | None, label_seed: int) -> ImageData:
    spec, pool = hashable.spec, _pool(hashable, split_seed)
    if pool.task is Task.multi_label:
        why = f"but images of {spec.name} have several labels each; data.class_weights=balanced weighs them in the loss"
        require(spec.sampler == "uniform", f"data.sampler is {spec.sampler}, {why}")
    few, notes = pool.train, pool.notes
    if few_shot_seed is not None:
        few = few_shot(pool.train, spec, pool.num_classes, few_shot_seed)
        notes = mix_note(pool, few, spec)
    train = flipped_labels(few, spec.corrupt.labels, pool.num_classes, label_seed)
    seeds = {"split_seed": split_seed if pool.drawn else None, "few_shot_seed": few_shot_seed}
    return replace(pool, train=train, class_weights=spec.class_weights, sampler=spec.sampler, seeds=seeds, notes=notes)


@lru_cache(maxsize=SPLITS_KEPT)
def _pool(hashable: Hashable, split_seed: int) -> ImageData:
    """All that there is of the chosen classes in the splits of `split_seed`."""
    spec = hashable.spec
    kind, shares = spec._kind(), (spec.val_share, spec.test_share)
    whole, rows = _whole(kind), _rows(kind, *shares, split_seed, spec.resplit)
    if spec.half is not None and spec.halves == "images":
        kept = _half(kind, *shares, spec.resplit, spec.half, spec.halves_seed)
        rows = tuple(np.intersect1d(part, kept) for part in rows)
    classes = chosen_classes(whole, spec)
    what = of_pixels(spec.corrupt)
    corrupted_NCHW = _pixels(kind, Hashable(json.dumps(canonical(what)), what))
    x_NCHW = [corrupted_NCHW if part in spec.corrupt.splits else whole.x_NCHW for part in PARTS]
    names = tuple(whole.class_names[c] for c in classes)
    train, val, test = (of_classes(Split(x, whole.y_N).take(r), classes) for x, r in zip(x_NCHW, rows, strict=True))
    data = ImageData(
        train, val, test, len(classes), whole.fingerprint, whole.task, names, whole.skipped, whole.x_NCHW,
        drawn=whole.drawn(spec.resplit),
    )  # fmt: skip
    require_every_class(data, spec.name)
    return data


def hash_of_pixels(x_NCHW: np.ndarray) -> str:
    """Of uint8 images, read in parts: they may lie on the disk."""
    content = hashlib.sha256()
    for start in range(0, len(x_NCHW), 4096):
        content.update(np.ascontiguousarray(x_NCHW[start : start + 4096]).data)
    return content.hexdigest()


def require_sound(whole: FullData, name: str) -> None:
    """Raise UserError for labels and images that no run can have."""
    x, y, number = whole.x_NCHW, whole.y_N, len(whole.class_names)
    require(x.dtype == np.uint8, f"{name}: images must be uint8, 0 to 255; they are {x.dtype}")
    shape = " x ".join(map(str, x.shape[1:]))
    channels = f"images must have 1 or 3 channels; their shape is {shape} (channels, height, width)"
    require(x.ndim == 4 and x.shape[1] in (1, 3), f"{name}: {channels}")
    require(len(x) == len(y), f"{name}: there are {len(x)} images and {len(y)} labels")
    require(len(x) > 0, f"{name}: there are no images")
    require(0 not in x.shape and 0 not in y.shape, f"{name}: images or labels are empty: {x.shape}, {y.shape}")
    if whole.task is Task.multi_label:
        bad = np.flatnonzero(~np.isin(y, (0, 1)).all(1))
        require(not len(bad), f"{name}: labels of image {bad[:1]} are not all 0 or 1: {y[bad[:1]].tolist()}")
        return
    bad = np.flatnonzero((y < 0) | (y >= number))
    first = f"the first that of image {bad[:1].sum()}: {y[bad[:1]].sum()}; there are {number} classes, from 0"
    require(not len(bad), f"{name}: {len(bad)} labels are out of range, {first}")
    empty = [f"{label} ({of})" for label, of in enumerate(whole.class_names) if label not in y]
    require(not empty, f"{name}: no image of class {', '.join(empty[:5])}; classes are numbered from 0 without a gap")


def split_rows(
    whole: FullData, name: str, val_share: float, test_share: float, split_seed: int, resplit: str | None = None,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Rows of the training, validation and test split: the set's own where it has them, else drawn by `split_seed`,
    stratified by class (a multi-label set: at random), groups kept together. With `resplit` they are drawn from that one of
    the set's own splits.

    Split before classes or halves are chosen: a donor of some classes then never learns on test images of a host of others.
    Raises UserError where a set has some splits of its own and lacks one that cannot be drawn, or that is to be split anew.
    """
    every = np.arange(len(whole.y_N))
    if resplit is not None:
        if whole.part_N is None:
            raise UserError(f"data.resplit is {resplit}, but {name} has no splits of its own to divide anew")
        there = [part for i, part in enumerate(PARTS) if i in whole.part_N]
        if resplit not in there:
            raise unknown(f"split of {name} in data.resplit:", resplit, there)
        every = every[whole.part_N == PARTS.index(resplit)]
    if whole.part_N is None or resplit is not None:
        rest, test = _divided(every, whole, test_share, split_seed, f"{name}: test_share={test_share}")
        return *_divided(rest, whole, val_share, split_seed, f"{name}: val_share={val_share}"), test
    own = [every[whole.part_N == part] for part in range(3)]
    found = [part for part, rows in zip(PARTS, own, strict=True) if len(rows)]
    for part in ("train", "test"):
        require(part in found, f"{name} has no {part} split; it has {', '.join(found)}")
    if "val" not in found:
        own[0], own[1] = _divided(own[0], whole, val_share, split_seed, f"{name}: val_share={val_share}")
    return tuple(own)


def _divided(rows: np.ndarray, whole: FullData, share: float, seed: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """`rows` in two: the rest, and `share` of them."""
    from sklearn.model_selection import StratifiedGroupKFold, train_test_split

    y_N = whole.y_N[rows] if whole.task is not Task.multi_label else np.zeros(len(rows), np.int64)
    state = seed % 2**32  # scikit-learn takes no more
    try:
        if whole.group_N is not None:
            number = min(20, len(np.unique(whole.group_N[rows])))  # as many twentieths as make the share
            folds = StratifiedGroupKFold(number, shuffle=True, random_state=state)
            parts = [second for _, second in folds.split(rows, y_N, whole.group_N[rows])]
            second = np.sort(np.concatenate(parts[: max(1, min(number - 1, round(share * number)))]))
            return np.delete(rows, second), rows[second]
        return tuple(train_test_split(rows, test_size=share, stratify=y_N, random_state=state))
    except ValueError as error:
        raise UserError(f"{what} cannot be drawn from {len(rows)} images: {str(error).splitlines()[0]}") from error


def half_of_images(rows: np.ndarray, whole: FullData, name: str, half: str, halves_seed: int) -> np.ndarray:
    """Half A or B of `rows`, in order. Raises UserError where there are too few."""
    seed = derive_seed(halves_seed, "halves") % 2**32
    first, second = _divided(rows, whole, 0.5, seed, f"{name}: halves of its images")
    return np.sort(first if half == "A" else second)


def chosen_classes(whole: FullData, spec: DataSet) -> list[int]:
    """The classes to keep, in their new order. Raises UserError for one that the set does not have."""
    there = list(range(len(whole.class_names)))
    if spec.half is not None and spec.halves != "images":
        return halves(there, spec)[spec.half]
    for wanted in spec.classes:
        if wanted not in there:
            raise unknown(f"class of {spec.name} in data.classes:", str(wanted), there)
    classes = spec.classes or there
    if len(classes) < 2 and whole.task is not Task.multi_label:
        raise UserError(f"data.classes is {spec.classes}; a task needs 2 classes or more of {spec.name}'s {there}")
    return classes


def halves(classes: list[int], spec: DataSet) -> dict[str, list[int]]:
    """The classes of half A and of half B. Raises UserError where they are to have a meaning and `spec` knows none."""
    if spec.halves == "semantic":
        require(bool(spec.semantic), f"{spec.name} has no halves with a meaning; data.halves=random draws them by lot")
        return spec.semantic
    require(len(classes) >= 4, f"{spec.name} has {len(classes)} classes; to be halved it takes 4 or more")
    order = np.random.default_rng(derive_seed(spec.halves_seed, "halves")).permutation(classes).tolist()
    middle = (len(order) + 1) // 2
    return {"A": sorted(order[:middle]), "B": sorted(order[middle:])}


def of_classes(split: Split, classes: list[int]) -> Split:
    """The images of `classes`, relabelled in that order; of a multi-label set all images, with these labels."""
    if split.y_N.ndim == 2:
        return Split(split.source_NCHW, split.y_N[:, classes], split.rows_N)
    kept, order = np.flatnonzero(np.isin(split.y_N, classes)), np.argsort(classes)
    y_N = order[np.searchsorted(classes, split.y_N[kept], sorter=order)]
    return Split(split.source_NCHW, y_N, split.rows[kept])


def require_every_class(data: ImageData, name: str) -> None:
    """Raise UserError for a split without images, or without those of a class."""
    for part, split in data.splits.items():
        require(len(split) > 0, f"{name}: the {part} split is empty")
        if data.task is not Task.multi_label and part != "val":
            missing = [of for label, of in enumerate(data.class_names) if label not in split.y_N]
            require(not missing, f"{name}: the {part} split has no image of class {', '.join(missing[:5])}")
