"""A folder of image files in torchvision's ImageFolder layout: a folder a class, within a folder a split where there are
splits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layergraft.config.data_schema import PARTS
from layergraft.config.registry import register
from layergraft.data.data_set import FullData
from layergraft.data.image_decoding import FileSet, open_image
from layergraft.errors import UserError, require, unknown

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@register("data", "folder")
@dataclass
class Folder(FileSet):
    """`path/CLASS/*.jpg`, or `path/train/CLASS/*.jpg` and `path/test/...`, and perhaps `path/val/...`."""

    name: str = "folder"

    def read(self) -> FullData:
        root = self.folder()
        _require_no_way_out(root)
        inside = sorted(path.name for path in root.iterdir() if path.is_dir())
        splits = {name: SPLITS[name] for name in inside if name in SPLITS}
        if splits and len(splits) < len(inside):
            raise unknown(f"split folder in {root}", (set(inside) - set(splits)).pop(), [*PARTS])
        found = [(part, *_listed(root / name)) for name, part in (splits or {".": ""}).items()]
        first, classes, _ = found[0]
        for part, others, _ in found:
            odd = ", ".join(sorted(set(others) ^ set(classes))[:5])
            require(not odd, f"{root}: the class folders of {part} are not those of {first}; one of them lacks {odd}")
        files = [(path, label, part) for part, _, samples in found for path, label in samples]
        x_NCHW, kept, facts = self.decoded([path for path, _, _ in files], open_image)
        labels = np.array([label for _, label, _ in files], np.int64)[kept]
        parts = np.array([PARTS.index(part) for _, _, part in files])[kept] if splits else None
        return FullData(x_NCHW, labels, tuple(classes), parts, **facts)


def _require_no_way_out(root: Path) -> None:
    """Raise UserError for a link to a folder outside of `root`, and for links that a walk would follow round and round."""
    walk = os.walk(root)  # which follows none
    links = [link for at, folders, _ in walk for link in (Path(at, name) for name in folders) if link.is_symlink()]
    for link in links:
        target = link.resolve()
        out = f"data=folder: {link} is refused: it leads out of {root}, to {target}"
        require(target.is_relative_to(root.resolve()), out)
    for link in links:
        for other in links:
            round_and_round = (other.parent.resolve() / other.name).is_relative_to(link.resolve())
            why = f"it links to a folder with a link to a folder, {other}"
            require(not round_and_round, f"data=folder: {link} is refused: {why}")


def _listed(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """The classes, and each file with its class. Raises UserError for a class without images."""
    from torchvision.datasets import ImageFolder

    try:
        listed = ImageFolder(str(folder))
    except FileNotFoundError as error:  # no class folder, or one without an image
        raise UserError(f"data=folder: {str(error).splitlines()[0]}; the layout is {folder}/CLASS/*.jpg") from error
    return listed.classes, [(Path(path), label) for path, label in listed.samples]
