"""A NumPy file in MedMNIST's layout: `{train,val,test}_images` (N, H, W) or (N, H, W, C) uint8, `..._labels` (N,) or
(N, 1), or (N, labels) of 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from omegaconf import MISSING

from layergraft.config.data_schema import PARTS
from layergraft.config.registry import one_of, register
from layergraft.data.data_set import DataSet, FullData
from layergraft.errors import UserError, require
from layergraft.metrics.tasks import Task
from layergraft.store.files import machine_memory, require_regular, unpacked

TASKS = ("auto", *(task.name for task in Task))


@register("data", "npz")
@dataclass
class Npz(DataSet):
    """A set that lacks the validation split has it drawn from the training split."""

    name: str = "npz"
    path: str = MISSING
    """The .npz file."""
    task: str = one_of("auto", TASKS, f"it must be one of {', '.join(TASKS)}")
    """multi_class, multi_label or ordinal; auto: multi_label where an image has several labels, else multi_class."""

    location_fields: ClassVar[tuple[str, ...]] = ("path",)

    def read(self) -> FullData:
        require_regular(self.path, "a .npz file")
        require(Path(self.path).exists(), f"data={self.name}: there is no file {self.path}; set data.path=FILE.npz")
        return read_npz(self.path, None if self.task == "auto" else Task[self.task])


def read_npz(path: str | Path, task: Task | None = None) -> FullData:
    """The set in a file. Raises UserError for one that cannot be read, has not the layout or would fill the memory."""
    require_fits(path)
    try:
        # allow_pickle is off: a file from a stranger runs no code.
        with open(path, "rb") as opened, np.load(opened) as file:
            arrays = {name: file[name] for name in file.files}
            for name, array in arrays.items():
                require(isinstance(array, np.ndarray), f"{name} is no array")
    except Exception as error:  # a damaged file can make zipfile and numpy raise nearly anything
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not a .npz file that can be read: {said}") from error
    return whole_of(arrays, str(path), task)


def require_fits(path: str | Path) -> None:
    """Raise UserError for what is no plain file, or an archive that unpacks to more than half of this machine's memory: the
    arrays of its splits are joined."""
    require_regular(path, "a .npz file")
    whole, most = unpacked(path) or 0, machine_memory() // 2
    how_much = f"its {Path(path).stat().st_size:,} bytes unpack to {whole:,}"
    require(whole <= most, f"{path} is refused: {how_much}, more than half of this machine's memory ({most:,})")


def channels_first(x: np.ndarray) -> np.ndarray:
    """(N, C, H, W) of (N, H, W) or (N, H, W, C)."""
    return x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)


def whole_of(
    arrays: Mapping[str, np.ndarray], where: str, task: Task | None = None, class_names: tuple[str, ...] | None = None
) -> FullData:
    """The set of these arrays. Raises UserError, naming `where`, for one that is missing or misshapen."""
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # images, labels, parts
    for number, part in enumerate(PARTS):
        x, y = (arrays.get(f"{part}_{what}") for what in ("images", "labels"))
        if x is None and y is None:
            continue
        if x is None or y is None:
            there, missing = ("labels", "images") if x is None else ("images", "labels")
            raise UserError(f"{where} has {part}_{there} but no {part}_{missing}")
        require(x.ndim in (3, 4), f"{where}: {part}_images has shape {x.shape}; it must be (N, H, W) or (N, H, W, C)")
        misfit = f"{part}_labels has shape {y.shape} for {len(x)} images; it must be (N,), (N, 1) or (N, labels)"
        require(len(x) == len(y) and y.ndim in (1, 2), f"{where}: {misfit}")
        require(x.dtype == np.uint8, f"{where}: {part}_images must be uint8, 0 to 255; they are {x.dtype}")
        with np.errstate(invalid="ignore"):  # of NaN, which is no whole number
            whole = y.dtype.kind in "buif" and bool(np.array_equal(y, y.astype(np.int64)))
        require(whole, f"{where}: {part}_labels are not whole numbers")
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        found.append((channels_first(x), y, np.full(len(x), number)))
    layout = "MedMNIST's layout is train_images, train_labels, val_..., test_..."
    require(bool(found), f"{where} holds {', '.join(arrays) or 'nothing'}; {layout}")
    images, labels, parts = zip(*found, strict=True)
    for kind, of_splits in (("images", images), ("labels", labels)):
        shapes = [str(array.shape[1:]) for array in of_splits]
        require(len(set(shapes)) == 1, f"{where}: the splits' {kind} have different shapes: {', '.join(shapes)}")
    y = np.concatenate(labels).astype(np.int64)
    several = y.ndim == 2
    task = task or (Task.multi_label if several else Task.multi_class)
    require(
        several == (task is Task.multi_label),
        f"{where}: an image has {y.shape[1] if several else 1} labels, so the task cannot be {task.name}",
    )
    number = y.shape[1] if several else int(y.max(initial=0)) + 1
    gap = f"labels go up to {number - 1} for {len(y)} images; classes are numbered from 0 without a gap"
    require(0 < number <= max(len(y), 2) or several, f"{where}: {gap}")
    names = class_names or tuple(map(str, range(number)))
    return FullData(np.concatenate(images), y, names, np.concatenate(parts), task)
