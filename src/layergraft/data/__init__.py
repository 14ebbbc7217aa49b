"""Data sets: a dataclass a file, each with `load(seed) -> ImageData`; batches made on the device (`batches`)."""

from layergraft.data.digits import Digits
from layergraft.data.images import ImageData, Split

__all__ = ["Digits", "ImageData", "Split"]
