"""Labelled images in memory, and the steps from a whole set to the part that a run uses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from layergraft.errors import UserError, unknown
from layergraft.files import digest
from layergraft.seeds import stream
from layergraft.specs import DataSpec


@dataclass(frozen=True)
class Split:
    """Images `x_NCHW` (uint8) and labels `y_N` (int64, from 0)."""

    x_NCHW: np.ndarray
    y_N: np.ndarray

    def __len__(self) -> int:
        return len(self.y_N)

    def take(self, index: np.ndarray) -> Split:
        return Split(self.x_NCHW[index], self.y_N[index])


@dataclass(frozen=True)
class ImageData:
    """What a run trains on, selects on and is judged by. `fingerprint` hashes the set's content before any selection."""

    train: Split
    val: Split
    test: Split
    num_classes: int
    fingerprint: str

    @property
    def channels(self) -> int:
        return self.train.x_NCHW.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        return self.train.x_NCHW.shape[1:]

    def with_channels(self, channels: int | None) -> ImageData:
        """The images with that many channels (None: as they are): grey ones repeated, colours averaged to grey.

        Raises UserError where they can be neither.
        """
        if channels in (None, self.channels):
            return self
        if 1 not in (channels, self.channels):
            raise UserError(f"host.in_channels is {channels}, but the images have {self.channels} channels")

        def convert(split: Split) -> Split:
            if channels != 1:
                return Split(np.repeat(split.x_NCHW, channels, axis=1), split.y_N)
            return Split(split.x_NCHW.mean(1, keepdims=True).round().astype(np.uint8), split.y_N)

        return replace(self, train=convert(self.train), val=convert(self.val), test=convert(self.test))


def fingerprint(whole: Split) -> str:
    return digest(whole.x_NCHW.tobytes() + whole.y_N.tobytes() + repr(whole.x_NCHW.shape).encode())


def keep_classes(whole: Split, spec: DataSpec) -> Split:
    """The images of `spec.classes`, relabelled in that order; all of them where it is empty.

    Raises UserError for a class that the set does not have.
    """
    there = np.unique(whole.y_N).tolist()
    for wanted in spec.classes:
        if wanted not in there:
            raise unknown(f"class of {spec.name} in data.classes:", str(wanted), there)
    classes = spec.classes or there
    if len(classes) < 2:
        raise UserError(f"data.classes is {spec.classes}; a task needs 2 classes or more of {spec.name}'s {there}")
    index = np.flatnonzero(np.isin(whole.y_N, classes))
    label = {old: new for new, old in enumerate(classes)}
    return Split(whole.x_NCHW[index], np.array([label[old] for old in whole.y_N[index].tolist()], np.int64))


def few_shot(pool: Split, spec: DataSpec, seed: int) -> Split:
    """`spec.train_size` images of `pool`, the same number of each class give or take one, drawn by `seed`.

    Raises UserError where a class has too few.
    """
    if spec.train_size is None:
        return pool
    num_classes = int(pool.y_N.max()) + 1
    rng = np.random.default_rng(stream(seed, "few-shot"))
    if spec.train_size < num_classes:
        raise UserError(
            f"data.train_size is {spec.train_size}, but {spec.name} has {num_classes} classes here and each needs an image"
        )
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(pool.y_N == label)
        wanted = spec.train_size // num_classes + (label < spec.train_size % num_classes)
        if wanted > len(members):
            raise UserError(
                f"data.train_size is {spec.train_size}, which takes {wanted} images of class {label} of {spec.name}; its training split has {len(members)} (of {len(pool)} in all)"
            )
        chosen.append(rng.choice(members, wanted, replace=False))
    return pool.take(np.sort(np.concatenate(chosen)))
