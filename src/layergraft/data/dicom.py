"""A folder of DICOM files with a table of labels: the medical pipeline.

Stored values go through the modality's rescale slope and intercept, then through the window (the file's own, or one for
all), then to 0 to 255; MONOCHROME1, where small values are bright, is turned round. Source: DICOM PS3.3, C.11.1 and C.11.2.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from layergraft.config.data_schema import PARTS
from layergraft.config.registry import register
from layergraft.data.data_set import FullData
from layergraft.data.image_decoding import FileSet
from layergraft.errors import UserError, require, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_VALUES = 2**28  # of an image


@register("data", "dicom")
@dataclass
class Dicom(FileSet):
    """`labels` is a CSV with the columns `file` (below `path`) and `label`, and perhaps `split` (train, val, test) and
    `patient`, whose images then stay in one split. Needs pydicom, which is in the extra `layergraft[medical]`."""

    name: str = "dicom"
    labels: str = "labels.csv"
    """The table, below `path`."""
    window: list[float] = field(default_factory=list)
    """Centre and width in the modality's units, such as [40,400] in Hounsfield units; empty: the file's own window, or
    all of its values where it has none."""
    channels: int = 1
    """1 or 3."""

    def check(self, at: str) -> None:
        super().check(at)
        fits = not self.window or (len(self.window) == 2 and self.window[1] >= 1)
        wanted = "it is a centre and a width of 1 or more, such as [40,400]"
        require(fits, f"{at}.window is {self.window}; {wanted}")

    def read(self) -> FullData:
        import pandas as pd

        try:
            import pydicom  # noqa: F401
        except ImportError as error:
            raise UserError("data=dicom needs pydicom: pip install 'layergraft[medical]'") from error
        root = self.folder()
        table_file = root / self.labels
        require(table_file.is_file(), f"data={self.name}: there is no table {table_file}; set data.labels=FILE.csv")
        out = f"data={self.name}: {table_file} is refused: it leads out of {root}, to {table_file.resolve()}"
        require(table_file.resolve().is_relative_to(root.resolve()), out)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # lines longer than the head
                table = pd.read_csv(table_file, dtype=str, keep_default_na=False, index_col=False)
        except (ValueError, pd.errors.ParserWarning) as error:
            raise UserError(f"{table_file} is not a table that can be read: {str(error).splitlines()[0]}") from error
        for column in ("file", "label"):
            if column not in table:
                raise unknown(f"{table_file} has no column", column, table.columns)
        require(len(table) > 0, f"{table_file} has no row")
        for column in ("file", "label", *(["patient"] if "patient" in table else [])):
            for line in table.index[table[column] == ""]:
                raise UserError(f"{table_file}: line {line + 2} has no {column}")
        for name in table.file[table.file.duplicated()]:
            raise UserError(f"{table_file} names {name} twice")
        missing = [name for name in table.file if not (root / name).is_file()]
        if missing:
            raise UserError(f"{table_file} names {len(missing)} files that are not in {root}, the first {missing[0]}")
        if "split" in table:
            for name in set(table.split) - set(PARTS):
                raise unknown(f"split in {table_file}", name, PARTS)
        x_NCHW, kept, facts = self.decoded([root / name for name in table.file], self._image, self.window)
        table = table.iloc[kept]
        names = tuple(sorted(set(table.label), key=lambda name: (not name.isdigit(), name.zfill(9))))
        part = table.split.map(PARTS.index).to_numpy() if "split" in table else None
        patients = table.patient.to_numpy().astype(str) if "patient" in table else None
        if part is not None and patients is not None:
            several = table.groupby("patient").split.nunique()
            for patient in several.index[several > 1]:
                raise UserError(f"{table_file}: patient {patient} is in several splits")
        labels = table.label.map(names.index).to_numpy().astype(np.int64)
        return FullData(x_NCHW, labels, names, part, group_N=patients, **facts)

    def _image(self, file: Path) -> Image:
        from PIL import Image

        return Image.fromarray(windowed(file, self.window))


def windowed(file: Path, window: list[float]) -> np.ndarray:
    """The file's image as uint8, (H, W) or (H, W, 3)."""
    import pydicom
    from pydicom.filereader import read_file_meta_info
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    # A deflated one is unpacked whole before anything is known of it, and a few bytes can unpack to all of the memory.
    syntax = read_file_meta_info(file).get("TransferSyntaxUID")
    require(syntax != DeflatedExplicitVRLittleEndian, "deflated; dcmconv +te, or any other tool, writes it as it is")
    image = pydicom.dcmread(file)
    shape = [int(image.get(name) or 1) for name in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")]
    require(math.prod(shape) <= MOST_VALUES, f"it says it has {' x '.join(map(str, shape))} values")
    x: np.ndarray = image.pixel_array
    is_colour, kind = getattr(image, "SamplesPerPixel", 1) == 3, image.PhotometricInterpretation
    require(is_colour or kind != "PALETTE COLOR", "PALETTE COLOR; only grey and colour images are read")
    require(x.ndim == (3 if is_colour else 2), f"{x.shape[0]} frames; only single images are read")
    if is_colour:
        return x.astype(np.uint8)
    x = np.asarray(apply_modality_lut(x, image), np.float64)
    if window:
        image.WindowCenter, image.WindowWidth = window
        image.VOILUTFunction = "LINEAR"
    low, high = x.min(), x.max()
    if "WindowCenter" in image and "WindowWidth" in image:
        centre, width = (float(np.ravel(value)[0]) for value in (image.WindowCenter, image.WindowWidth))
        beyond = [centre - 50 * width, centre + 50 * width]  # they tell the range that the window is mapped to
        x = apply_windowing(np.append(x.ravel(), beyond), image)
        x, (low, high) = x[:-2].reshape(image.Rows, image.Columns), x[-2:]
    elif image.get("VOILUTSequence"):
        x = np.asarray(apply_voi(x.astype(np.int64), image), np.float64)
        low, high = 0, 2 ** image.VOILUTSequence[0].LUTDescriptor[2] - 1
    is_finite = bool(np.isfinite(x).all() and np.isfinite([low, high]).all())
    require(is_finite, "its rescaling or window gives values that are not finite")
    x = (x - low) / (high - low) if high != low else np.zeros_like(x)
    if kind == "MONOCHROME1":
        x = 1 - x
    return np.asarray(np.round(np.clip(x, 0, 1) * 255), np.uint8)
