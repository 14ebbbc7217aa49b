"""Sets that torchvision reads, and downloads where there is a network, into `root` with torchvision's own layout.

Where `root` has NAME.npz, in MedMNIST's layout, that is read in place of torchvision's files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from layergraft.config.data_schema import PARTS
from layergraft.config.registry import one_of, register
from layergraft.data.data_set import TEST, TRAIN, VAL, DataSet, FullData
from layergraft.data.image_decoding import FileSet, open_image
from layergraft.data.npz import channels_first, read_npz
from layergraft.errors import UserError

# Name -> torchvision's class; what to put where, without a network.
ARRAYS = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py/ (from cifar-10-python.tar.gz)"),
    "cifar100": ("CIFAR100", "cifar-100-python/ (from cifar-100-python.tar.gz)"),
    "mnist": ("MNIST", "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"),
    "svhn": ("SVHN", "train_32x32.mat and test_32x32.mat"),
    "stl10": ("STL10", "stl10_binary/ (from stl10_binary.tar.gz)"),
}
FILES = {
    "food101": ("Food101", "food-101/ (from food-101.tar.gz)"),
    "flowers102": ("Flowers102", "flowers-102/jpg/ (from 102flowers.tgz), flowers-102/imagelabels.mat and setid.mat"),
}
HALVES = {
    "cifar10": {"A": [2, 3, 4, 5, 6, 7], "B": [0, 1, 8, 9]},  # animals, vehicles
    "stl10": {"A": [1, 3, 4, 5, 6, 7], "B": [0, 2, 8, 9]},  # animals, vehicles
    "fashion_mnist": {"A": [0, 1, 2, 3, 4, 6], "B": [5, 7, 8, 9]},  # clothes, shoes and bags
}


@register("data", "torchvision")
@dataclass
class TorchvisionArrays(DataSet):
    """Images of one size, read into memory; the validation split is drawn from the training split."""

    name: str = one_of("cifar10", ARRAYS)
    """cifar10, cifar100, mnist, fashion_mnist, svhn or stl10."""
    root: str = "data"
    """The folder of the files; what is not there is downloaded."""

    location_fields: ClassVar[tuple[str, ...]] = ("root",)

    @property
    def semantic(self) -> dict[str, list[int]]:
        return HALVES.get(self.name, {})

    def read(self) -> FullData:
        packed = Path(self.root) / f"{self.name}.npz"
        if packed.is_file():
            return read_npz(packed)
        kind, layout = ARRAYS[self.name]
        is_split = self.name in ("svhn", "stl10")  # by name, and with the channels first
        options = [{"split": "train"}, {"split": "test"}] if is_split else [{"train": True}, {"train": False}]
        halves = [_of_torchvision(kind, self.name, layout, self.root, **option) for option in options]
        images = np.concatenate([half.data for half in halves])
        labels = np.concatenate([half.labels if is_split else half.targets for half in halves]).astype(np.int64)
        part = np.repeat([TRAIN, TEST], [len(half.data) for half in halves])
        names = tuple(map(str, getattr(halves[0], "classes", range(10))))
        return FullData(images if is_split else channels_first(images), labels, names, part)


@register("data", "torchvision_files")
@dataclass
class TorchvisionFiles(FileSet):
    """Images of many sizes, decoded once; with the splits that the set has."""

    name: str = one_of("food101", FILES)
    """food101 or flowers102."""

    def read(self) -> FullData:
        kind, layout = FILES[self.name]
        parts = (TRAIN, TEST) if self.name == "food101" else (TRAIN, VAL, TEST)
        found = [_of_torchvision(kind, self.name, layout, self.path, split=PARTS[part]) for part in parts]
        files = [Path(path) for split in found for path in split._image_files]
        x_NCHW, kept, facts = self.decoded(files, open_image)
        labels = np.array([label for split in found for label in split._labels], np.int64)[kept]
        part_N = np.repeat(parts, [len(split) for split in found])[kept]
        classes = getattr(found[0], "classes", None) or map(str, range(102))
        return FullData(x_NCHW, labels, tuple(classes), part_N, **facts)


def _of_torchvision(kind: str, name: str, layout: str, root: str, **split: Any) -> Any:
    """Torchvision's data set, downloaded where it is not there. Raises UserError, with what to put where."""
    import torchvision

    make: Callable[..., Any] = getattr(torchvision.datasets, kind)
    try:
        return make(root, download=False, **split)
    except Exception as error:  # missing, or not whole
        missing = error
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        return make(root, download=True, **split)
    except Exception as error:
        reason = next((str(e).splitlines()[0] for e in (error, missing) if str(e)), type(error).__name__)
        raise UserError(
            f"data={name} is not in {Path(root).resolve()}, and could not be downloaded ({reason}); put {layout} there, or set exec.data=FOLDER"
        ) from error
