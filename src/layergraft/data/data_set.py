"""From a whole set to the part of it that a run uses: splits, classes, few-shot, corruptions; all explicit, by seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from layergraft.config.data_schema import DataSpec
from layergraft.config.registry import Hashable, canonical, hashable
from layergraft.data.corruptions import corrupted, flipped_labels
from layergraft.data.image_data import ImageData, Split
from layergraft.errors import UserError, require, unknown
from layergraft.metrics.tasks import Task
from layergraft.seeds import derive_seed
from layergraft.store.files import digest

PARTS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)


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


class DataSet(DataSpec):
    """What kinds of data sets share: they say how to `read` theirs, and which halves of the classes have a meaning."""

    @property
    def semantic(self) -> dict[str, list[int]]:
        return {}

    def read(self) -> FullData:
        """The set as it is in its files. Raises UserError where it is not there or cannot be read."""
        raise NotImplementedError

    def load(self, seed: int) -> ImageData:
        """The three splits; `seed` draws which images are in a few-shot training split and which labels are flipped.

        Raises UserError for what the set does not have.
        """
        is_drawn = self.train_size is not None or self.train_per_class is not None or self.corrupt.labels > 0
        return _loaded(hashable(self), seed if is_drawn else 0)

    def source(self) -> dict[str, Any]:
        """The fields of this kind alone: what decides what is read."""
        shared = {item.name for item in fields(DataSpec)}
        return {name: value for name, value in canonical(self).items() if name == "name" or name not in shared}


@lru_cache(maxsize=8)
def _whole(hashable: Hashable) -> FullData:
    whole: FullData = hashable.spec.read()
    require_sound(whole, hashable.spec.name)
    return whole


@lru_cache(maxsize=16)
def _rows(
    hashable: Hashable, val_share: float, test_share: float, split_seed: int, resplit: str | None
) -> tuple[np.ndarray, ...]:
    return split_rows(_whole(hashable), hashable.spec.name, val_share, test_share, split_seed, resplit)


@lru_cache(maxsize=8)
def _pixels(hashable: Hashable, corruption: str) -> np.ndarray:
    return corrupted(_whole(hashable).x_NCHW, hashable.spec.corrupt, hashable.spec.name)


@lru_cache(maxsize=8)
def _loaded(hashable: Hashable, seed: int) -> ImageData:
    spec, pool = hashable.spec, _pool(hashable)
    if pool.task is Task.multi_label:
        why = f"but images of {spec.name} have several labels each; data.class_weights=balanced weighs them in the loss"
        require(spec.sampler == "uniform", f"data.sampler is {spec.sampler}, {why}")
    few = few_shot(pool.train, spec, pool.num_classes, seed)
    train = flipped_labels(few, spec.corrupt.labels, pool.num_classes, seed)
    return replace(pool, train=train, class_weights=spec.class_weights, sampler=spec.sampler)


@lru_cache(maxsize=8)
def _pool(hashable: Hashable) -> ImageData:
    """All that there is of the chosen classes; nothing of it is drawn by a run's seed."""
    spec = hashable.spec
    kind = Hashable(json.dumps(spec.source()) + type(spec).__name__, spec)
    whole = _whole(kind)
    rows = _rows(kind, spec.val_share, spec.test_share, spec.split_seed, spec.resplit)
    if spec.half is not None and spec.halves == "images":
        rows = tuple(half_of_images(part, whole, spec) for part in rows)
    classes = chosen_classes(whole, spec)
    x_NCHW = _pixels(kind, json.dumps(canonical(spec.corrupt)))
    names = tuple(whole.class_names[c] for c in classes)
    train, val, test = (of_classes(Split(x_NCHW, whole.y_N).take(r), classes) for r in rows)
    data = ImageData(train, val, test, len(classes), whole.fingerprint, whole.task, names, whole.skipped, whole.x_NCHW)
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
    whole: FullData, name: str, val_share: float, test_share: float, split_seed: int, resplit: str | None = None
) -> tuple[np.ndarray, ...]:
    """Rows of the training, validation and test split: the set's own where it has them, else drawn by `split_seed`,
    stratified by class (a multi-label set: at random), groups kept together. With `resplit` they are drawn from that one of
    the set's own splits.

    Split before classes or halves are chosen: a donor of some classes then never learns on test images of a host of others.
    Raises UserError where a set has some splits of its own and lacks one that cannot be drawn, or that is to be split anew.
    """
    every = np.arange(len(whole.y_N))
    if resplit is not None:
        require(
            whole.part_N is not None, f"data.resplit is {resplit}, but {name} has no splits of its own to divide anew"
        )
        there = [] if whole.part_N is None else [part for i, part in enumerate(PARTS) if i in whole.part_N]
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
    try:
        if whole.group_N is not None:
            number = min(20, len(np.unique(whole.group_N[rows])))  # as many twentieths as make the share
            folds = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
            parts = [second for _, second in folds.split(rows, y_N, whole.group_N[rows])]
            second = np.sort(np.concatenate(parts[: max(1, min(number - 1, round(share * number)))]))
            return np.delete(rows, second), rows[second]
        return tuple(train_test_split(rows, test_size=share, stratify=y_N, random_state=seed))
    except ValueError as error:
        raise UserError(f"{what} cannot be drawn from {len(rows)} images: {str(error).splitlines()[0]}") from error


def half_of_images(rows: np.ndarray, whole: FullData, spec: DataSet) -> np.ndarray:
    """Half A or B of `rows`, in their order; the same whatever the run's seed. Raises UserError where there are too few."""
    first, second = _divided(
        rows, whole, 0.5, derive_seed(spec.halves_seed, "halves") % 2**32, f"{spec.name}: halves of its images"
    )
    return np.sort(first if spec.half == "A" else second)


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


def few_shot(pool: Split, spec: DataSpec, num_classes: int, seed: int) -> Split:
    """`spec.train_size` images of `pool` in all, the same number of each class give or take one, or
    `spec.train_per_class` of each, drawn by `seed`. Of a multi-label set: at random.

    Raises UserError where a class has too few.
    """
    key = "train_size" if spec.train_size is not None else "train_per_class"
    given = getattr(spec, key)
    if given is None:
        return pool
    wanted, name = given if key == "train_size" else given * num_classes, spec.name
    rng = np.random.default_rng(derive_seed(seed, "few-shot"))
    if pool.y_N.ndim == 2:
        require(key == "train_size", f"data.train_per_class: {name} has several labels an image; train_size is in all")
        require(wanted <= len(pool), f"data.train_size is {wanted}; {name} has {len(pool)} training images")
        return pool.take(np.sort(rng.choice(len(pool), wanted, replace=False)))
    if wanted < num_classes:
        raise UserError(
            f"data.train_size is {wanted}, but {name} has {num_classes} classes here and each needs an image"
        )
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(pool.y_N == label)
        number = wanted // num_classes + (label < wanted % num_classes)
        if number > len(members):
            raise UserError(
                f"data.{key} is {given}, which takes {number} images of class {label} of {name}; its training split has {len(members)} (of {len(pool)} in all)"
            )
        chosen.append(rng.choice(members, number, replace=False))
    return pool.take(np.sort(np.concatenate(chosen)))
