"""Image files of any size, decoded once into an array on disk that all processes map: never an image at a time again."""

from __future__ import annotations

import json
import stat
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from omegaconf import MISSING

from layergraft.config.registry import bounded, one_of
from layergraft.data.data_set import DataSet, hash_of_pixels
from layergraft.errors import require
from layergraft.store.files import create_once, digest, label, write_json

if TYPE_CHECKING:
    from PIL.Image import Image

# Of what PIL reads; others among them have other programs read them, as Ghostscript does PostScript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SIZE = 64  # pixels a side, where nothing else is known
CHUNK = 256  # files at a time, so that few whole images are in memory


@dataclass
class FileSet(DataSet):
    """A set of image files in a folder."""

    path: str = MISSING
    """The folder that the files lie in."""
    cache: str = "outputs/data"
    """Where decoded images are kept."""
    size: int | None = bounded(None, "[1, inf)")
    """Pixels a side: the shorter side is resized to it, the middle is cut out. null: what the host's weights were trained with if
    they are torchvision's, else 64."""
    channels: int = one_of(3, (1, 3), "it must be 1 or 3")
    """3, or 1: colours are turned into grey."""
    skip_corrupt: bool = False
    """Leave files out that cannot be read, and count them; else the first of them is an error."""

    location_fields: ClassVar[tuple[str, ...]] = ("path", "cache")

    def sized(self, pixels: int | None) -> FileSet:
        return replace(self, size=self.size or pixels)

    def folder(self) -> Path:
        """`path`. Raises UserError where it is not there."""
        folder = Path(self.path)
        require(folder.is_dir(), f"data={self.name}: there is no folder {folder}; set data.path=FOLDER")
        return folder

    def decoded(
        self, files: Sequence[Path], read: Callable[[Path], Image], options: Any = None
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """The images of `files`, (N, channels, size, size) uint8, mapped from the cache; the indices of the files that they
        are of; and for `FullData` the hash of their pixels, and the files that were left out, and why.

        `read` gives an image of PIL's; `options` is what it depends on. Raises UserError for a file that cannot be read,
        unless such are to be left out, and for one that lies outside of `path`, by a link or by its name.
        """
        within, size = Path(self.path).resolve(), self.size or SIZE
        stamps = [self._stamp(file, within) for file in files]
        key = digest([stamps, size, self.channels, self.skip_corrupt, options])
        folder = Path(self.cache) / label(self.name, f"{size}x{size}", key)
        create_once(folder, lambda unfinished: self._decode(files, read, size, unfinished))
        known = json.loads((folder / "decoded.json").read_text())
        facts = {"pixels": known["pixels"], "skipped": tuple(known["skipped"])}
        return np.load(folder / "images.npy", mmap_mode="r"), np.array(known["kept"]), facts

    def _stamp(self, file: Path, within: Path) -> tuple[str, int, int]:
        real, status = file.resolve(), file.stat()
        where = f"data={self.name}: {file}"
        require(real.is_relative_to(within), f"{where} is refused: it leads out of {self.path}, to {real}")
        require(stat.S_ISREG(status.st_mode), f"{where} is no plain file")
        return str(real), status.st_size, status.st_mtime_ns

    def _decode(self, files: Sequence[Path], read: Callable[[Path], Image], size: int, folder: Path) -> None:
        def one(file: Path) -> np.ndarray | str:
            try:
                return fitted(read(file), size, self.channels)
            except Exception as error:  # decoders raise what they like
                return f"{file}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"

        from PIL.Image import DecompressionBombWarning

        kept: list[int] = []
        skipped: list[str] = []
        whole, file = folder / "all.npy", folder / "images.npy"
        out = np.lib.format.open_memmap(whole, "w+", np.uint8, (len(files), self.channels, size, size))
        # Of what decoders warn of, PIL's word for an image of a billion pixels in a few bytes is all that counts.
        with warnings.catch_warnings(), ThreadPoolExecutor() as pool:  # decoders give up the interpreter's lock
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", DecompressionBombWarning)
            for start in range(0, len(files), CHUNK):
                for index, image in enumerate(pool.map(one, files[start : start + CHUNK]), start):
                    if not isinstance(image, str):
                        out[len(kept)] = image
                        kept.append(index)
                        continue
                    skipped.append(image)
                    advice = "data.skip_corrupt=true leaves such files out, and counts them"
                    require(self.skip_corrupt, f"data={self.name}: cannot read {image}; {advice}")
        require(bool(kept), f"data={self.name}: none of the {len(files)} files could be read")
        out.flush()
        if skipped:
            np.save(file, out[: len(kept)])
            whole.unlink()
        else:
            whole.rename(file)
        pixels = hash_of_pixels(np.load(file, mmap_mode="r"))  # once, not in every process
        write_json(folder / "decoded.json", {"pixels": pixels, "kept": kept, "skipped": skipped})


def open_image(file: Path) -> Image:
    """A picture in one of FORMATS, whatever its name says, upright."""
    from PIL import Image, ImageOps

    with Image.open(file, formats=FORMATS) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def fitted(image: Image, size: int, channels: int) -> np.ndarray:
    """(channels, size, size) uint8: the shorter side resized to `size`, the middle cut out."""
    from PIL import Image, ImageOps

    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
