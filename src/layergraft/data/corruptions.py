"""What is done to images on purpose: noise, blur, contrast at a severity, shuffled blocks, channels in another order;
and labels that are wrong.

Severities are CIFAR-10-C's. Source: Hendrycks & Dietterich, Benchmarking Neural Network Robustness to Common Corruptions,
2019, and its make_cifar_c.py. Shuffled blocks: Neyshabur, Sedghi & Zhang, What is being transferred in transfer
learning?, 2020, section 3.1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from layergraft.config.data_schema import PARTS, CorruptionSpec
from layergraft.config.registry import canonical
from layergraft.data.image_data import Split
from layergraft.errors import require
from layergraft.seeds import derive_seed
from layergraft.store.files import create_once, digest

NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # deviation, of images in 0 to 1
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)  # deviation in pixels
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # what is left of the distance from the image's mean
CHUNK = 1024  # images at a time, each chunk with a generator of its own


def of_pixels(spec: CorruptionSpec) -> CorruptionSpec:
    """What `spec` does to an image of the splits that it acts on, and nothing else."""
    return replace(spec, labels=0.0, splits=[*PARTS])


def corrupted(x_NCHW: np.ndarray, what: CorruptionSpec, name: str) -> np.ndarray:
    """The images (uint8) as `what`, of `of_pixels`, has them: the same array where it asks for nothing. What is mapped from a file
    goes to a file beside it, once.

    Raises UserError where blocks or channels do not fit the images.
    """
    if what == CorruptionSpec():
        return x_NCHW
    _, channels, height, width = x_NCHW.shape
    misfit = f"which does not divide {name}'s images of {height} x {width} pixels"
    require(
        not what.blocks or height % what.blocks == width % what.blocks == 0,
        f"data.corrupt.blocks is {what.blocks}, {misfit}",
    )
    others = f"{name}'s images have {channels} channels"
    require(len(what.channels) in (0, channels), f"data.corrupt.channels is {what.channels}; {others}")
    if not isinstance(x_NCHW, np.memmap):
        return _filled(np.empty_like(x_NCHW), x_NCHW, what)
    folder = Path(cast(str, x_NCHW.filename)).with_name(f"corrupted-{digest(canonical(what))}")

    def make(unfinished: Path) -> None:
        file = np.lib.format.open_memmap(unfinished / "images.npy", "w+", np.uint8, x_NCHW.shape)
        _filled(file, x_NCHW, what)
        file.flush()

    create_once(folder, make)
    images: np.ndarray = np.load(folder / "images.npy", mmap_mode="r")
    return images


def _filled(out: np.ndarray, x_NCHW: np.ndarray, spec: CorruptionSpec) -> np.ndarray:
    for start in range(0, len(x_NCHW), CHUNK):
        out[start : start + CHUNK] = _chunk(np.asarray(x_NCHW[start : start + CHUNK]), spec, start)
    return out


def _chunk(x_NCHW: np.ndarray, spec: CorruptionSpec, start: int) -> np.ndarray:
    """Structure first, then optics, then noise: in the order in which a camera would have it."""
    if spec.blocks is not None:
        x_NCHW = shuffled_blocks(x_NCHW, spec.blocks, np.random.default_rng(derive_seed(0, "blocks", start)))
    if spec.channels:
        x_NCHW = x_NCHW[:, spec.channels]
    x = x_NCHW.astype(np.float32) / 255
    if spec.contrast:
        mean = x.mean((2, 3), keepdims=True)
        x = np.clip((x - mean) * CONTRAST[spec.contrast - 1] + mean, 0, 1)
    if spec.blur:
        from scipy.ndimage import gaussian_filter

        x = np.clip(gaussian_filter(x, (0, 0, BLUR[spec.blur - 1], BLUR[spec.blur - 1]), mode="nearest"), 0, 1)
    if spec.noise:
        rng = np.random.default_rng(derive_seed(0, "noise", start))
        x = np.clip(x + rng.normal(0, NOISE[spec.noise - 1], x.shape).astype(np.float32), 0, 1)
    return np.round(x * 255).astype(np.uint8)


def shuffled_blocks(x_NCHW: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Each image's blocks of `side` x `side` pixels in an order of its own."""
    n, c, h, w = x_NCHW.shape
    rows, columns = h // side, w // side
    blocks = x_NCHW.reshape(n, c, rows, side, columns, side).transpose(0, 2, 4, 1, 3, 5)
    order = rng.permuted(np.tile(np.arange(rows * columns), (n, 1)), axis=1)
    shuffled: np.ndarray = blocks.reshape(n, rows * columns, c, side, side)[np.arange(n)[:, None], order]
    return shuffled.reshape(n, rows, columns, c, side, side).transpose(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


def flipped_labels(split: Split, share: float, num_classes: int, seed: int) -> Split:
    """`share` of the labels replaced by another class, each as likely; of a multi-label set that share of all labels
    turned round."""
    number = round(share * split.y_N.size)
    if not number:
        return split
    rng = np.random.default_rng(derive_seed(seed, "label flips"))
    y = split.y_N.copy()
    wrong = rng.choice(y.size, number, replace=False)
    if y.ndim == 2:
        y.flat[wrong] = 1 - y.flat[wrong]
    else:
        y[wrong] = (y[wrong] + rng.integers(1, num_classes, number)) % num_classes
    return replace(split, y_N=y)
