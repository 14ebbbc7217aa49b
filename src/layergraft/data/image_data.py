"""Labelled images: the three splits that a run trains on, selects on and is judged by."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from layergraft.errors import UserError
from layergraft.metrics.tasks import Task


@dataclass(frozen=True)
class Split:
    """Images and their labels `y_N` (int64, from 0; of a multi-label set (N, labels) of 0 and 1).

    The images are the rows `rows_N` of `source_NCHW` (uint8), in memory or mapped from a file, and are read when they
    are asked for: a sweep is checked without a look at them.
    """

    source_NCHW: np.ndarray
    y_N: np.ndarray
    rows_N: np.ndarray | None = None
    """None: all of them, in order."""
    channels: int | None = None
    """What the images are converted to, grey ones repeated, colours averaged; None: as they are."""

    def __len__(self) -> int:
        return len(self.y_N)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        _, c, h, w = self.source_NCHW.shape
        return self.channels or c, h, w

    def __reduce__(self) -> tuple[Any, ...]:
        """What is mapped from a file goes to another process as the file's name."""
        source = self.source_NCHW
        known = source.filename if isinstance(source, np.memmap) else source
        return _split_of, (known, self.y_N, self.rows_N, self.channels)

    @property
    def rows(self) -> np.ndarray:
        return np.arange(len(self.y_N)) if self.rows_N is None else self.rows_N

    def take(self, index: np.ndarray) -> Split:
        return replace(self, y_N=self.y_N[index], rows_N=self.rows[index])

    def images(self, index: Any = slice(None)) -> np.ndarray:
        """Those at `index`, uint8."""
        x_NCHW: np.ndarray = np.take(self.source_NCHW, self.rows[index], axis=0)  # which lets other threads run
        if self.channels == 1 < x_NCHW.shape[1]:
            x_NCHW = x_NCHW.mean(1, keepdims=True).round().astype(np.uint8)
        elif self.channels not in (None, x_NCHW.shape[1]):
            x_NCHW = np.repeat(x_NCHW, self.channels, axis=1)
        return x_NCHW

    @cached_property
    def x_NCHW(self) -> np.ndarray:
        """All images, in memory."""
        return self.images()


def _split_of(source: Any, *rest: Any) -> Split:
    """A split whose images are `source`, or lie in the file of that name."""
    return Split(source if isinstance(source, np.ndarray) else np.load(source, mmap_mode="r"), *rest)


@dataclass(frozen=True)
class DataFacts:
    """What a network is planned for: the shape of the task, without the images."""

    fingerprint: str
    """Of the set's content before any selection."""
    shape: tuple[int, int, int]
    """Of an image: channels, height, width."""
    num_classes: int
    task: Task
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageData:
    """What a run trains on, selects on and is judged by."""

    train: Split
    val: Split
    test: Split
    num_classes: int
    fingerprint: str
    """Of the set's content before any selection."""
    task: Task = Task.multi_class
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    """Files that could not be read and were left out, as was asked for."""
    originals_NCHW: np.ndarray | None = None
    """The images of the whole set, before any corruption; the splits' rows are rows of it."""
    class_weights: str = "none"
    """Of the training loss, as `DataSpec` has it."""
    sampler: str = "uniform"
    """Of the training images, as `DataSpec` has it."""
    drawn: tuple[str, ...] = ()
    """The splits that were drawn; the others are the set's own."""
    seeds: dict[str, int | None] = field(default_factory=dict)
    """`split_seed` and `few_shot_seed` as they were used; None where nothing was drawn."""
    notes: tuple[str, ...] = ()
    """What a reader of figures on these images must know: a line each."""

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        return self.train.shape

    @property
    def facts(self) -> DataFacts:
        return DataFacts(self.fingerprint, self.shape, self.num_classes, self.task, self.class_names)

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}

    def original(self, part: str) -> Split:
        """A split's images as they were before any corruption."""
        split = self.splits[part]
        return split if self.originals_NCHW is None else replace(split, source_NCHW=self.originals_NCHW)

    def with_channels(self, channels: int | None) -> ImageData:
        """The images with that many channels (None: as they are): grey ones repeated, colours averaged to grey.

        Raises UserError where they can be neither.
        """
        if channels in (None, self.channels):
            return self
        if 1 not in (channels, self.channels):
            raise UserError(f"host.in_channels is {channels}, but the images have {self.channels} channels")
        train, val, test = (replace(split, channels=channels) for split in self.splits.values())
        return replace(self, train=train, val=val, test=test)
