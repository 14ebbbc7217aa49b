"""A folder of image files in torchvision's ImageFolder layout: a folder a class, within a folder a split where there are
splits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layergraft.config.registry import register
from layergraft.data.decoded import FileSet, open_image
from layergraft.data.sets import PARTS, Whole
from layergraft.errors import UserError, require, unknown

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@register("data", "folder")
@dataclass
class Folder(FileSet):
    """`path/CLASS/*.jpg`, or `path/train/CLASS/*.jpg` and `path/test/...`, and perhaps `path/val/...`."""

    name: str = "folder"

    def read(self) -> Whole:
        root = self.folder()
        _require_no_way_out(root)
        inside = sorted(path.name for path in root.iterdir() if path.is_dir())
        splits = {name: SPLITS[name] for name in inside if name in SPLITS}
        if splits and len(splits) < len(inside):
            raise unknown(f"split folder in {root}", (set(inside) - set(splits)).pop(), [*PARTS])
        found: list[tuple[str | None, list[str], list[tuple[Path, int]]]]
        found = [(part, *_listed(root / name)) for name, part in splits.items()] or [(None, *_listed(root))]
        classes = found[0][1]
        for part, others, _ in found:
            odd = set(others) ^ set(classes)
            require(
                not odd,
                f"{root}: the class folders of {part} are not those of {found[0][0]}; one of them lacks {', '.join(sorted(odd)[:5])}",
            )
        files = [(path, label, part) for part, _, samples in found for path, label in samples]
        images = self.decoded([path for path, _, _ in files], open_image)
        labels = np.array([label for _, label, _ in files], np.int64)[images.kept]
        parts = np.array([PARTS.index(part) for _, _, part in files])[images.kept] if splits else None
        return Whole(images.x_NCHW, labels, tuple(classes), parts, pixels=images.pixels, skipped=images.skipped)


def _require_no_way_out(root: Path) -> None:
    """Raise UserError for a link to a folder outside of `root`, and for links that a walk would follow round and round."""
    real, links = root.resolve(), []
    for at, folders, _ in os.walk(root):  # it follows none
        for link in (Path(at) / name for name in folders if os.path.islink(os.path.join(at, name))):
            target = link.resolve()
            require(target.is_relative_to(real), f"data=folder: {link} is refused: it leads out of {root}, to {target}")
            links.append((link, link.parent.resolve() / link.name, target))
    for link, _, target in links:
        within = next((other for other, place, _ in links if place.is_relative_to(target)), None)
        require(
            within is None, f"data=folder: {link} is refused: it links to a folder with a link to a folder, {within}"
        )


def _listed(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """The classes, and each file with its class. Raises UserError for a class without images."""
    from torchvision.datasets import ImageFolder

    try:
        listed = ImageFolder(str(folder))
    except FileNotFoundError as error:  # no class folder, or one without an image
        raise UserError(f"data=folder: {str(error).splitlines()[0]}; the layout is {folder}/CLASS/*.jpg") from error
    return listed.classes, [(Path(path), label) for path, label in listed.samples]
