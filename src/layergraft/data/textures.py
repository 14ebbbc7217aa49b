"""Textures made by formula, with a dial for how much their statistics differ from another instance's.

Each class is a family of textures (oriented gratings, noise of a spectrum, blobs, checkers) with parameters of its own:
orientation, scale, spectral slope, density, contrast, brightness, colour. An instance at dial 0 has the parameters of the
reference; the dial moves each of them away from there, at a pace of its own, so that the distance between the two sets'
statistics grows with it. At dial 1 a linear classifier knows little of the reference's classes from the other's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from layergraft.config.registry import bounded, one_of, register
from layergraft.data.data_set import TEST, TRAIN, VAL, DataSet, FullData
from layergraft.errors import require
from layergraft.seeds import derive_seed

FAMILIES = ("gratings", "spectrum", "blobs", "checker")
# Parameter -> its range, which does not come back to where it starts, as a whole turn would; angles and shares as they are, scales as logarithms to base 2 of cycles an image.
RANGES = {
    "angle": (0.0, math.pi / 2),
    "scale": (1.0, 3.0),
    "slope": (0.5, 2.5),
    "density": (0.2, 0.8),
    "contrast": (0.15, 0.35),
    "brightness": (0.35, 0.65),
    "hue": (0.0, 0.5),
}
FURTHEST = 0.25  # of a parameter's range: how far dial 1 takes it at most; half of that at least


@register("data", "textures")
@dataclass
class Textures(DataSet):
    """`num_classes` classes, the families in turn; the images depend on these fields alone, not on the run's seed."""

    name: str = "textures"
    num_classes: int = bounded(8, "[2, inf)")
    """2 or more."""
    size: int = bounded(32, "[4, inf)", "it must be 4 pixels or more")
    """Pixels a side."""
    channels: int = one_of(3, (1, 3), "it must be 1 or 3")
    """1 or 3."""
    dial: float = bounded(0.0, "[0, 1]", "it goes from 0 to 1")
    """From 0, the reference's statistics, to 1."""
    instance: int = 0
    """Which images are drawn with these statistics: two instances have none in common."""
    texture_seed: int = 0
    """Of the reference's parameters and of the pace of each."""
    per_class: int = bounded(300, "[12, inf)")
    """Images of each class: 1/6 of them test, 1/12 validation."""

    semantic = {"A": [0, 3, 4, 7], "B": [1, 2, 5, 6]}  # of 8 classes: periodic, and random

    def check(self, at: str) -> None:
        super().check(at)
        fits = self.halves == "random" or self.num_classes == 8
        require(fits, f"{at}.halves=semantic is of 8 classes; {at}.num_classes is {self.num_classes}")

    def read(self) -> FullData:
        names = tuple(f"{FAMILIES[label % 4]} {label // 4}" for label in range(self.num_classes))
        images = np.concatenate([self._drawn(label) for label in range(self.num_classes)])
        part = np.full(self.per_class, TRAIN)
        part[: self.per_class // 6] = TEST
        part[self.per_class // 6 :][: self.per_class // 12] = VAL
        labels = np.repeat(np.arange(self.num_classes), self.per_class)
        return FullData(images, labels, names, np.tile(part, self.num_classes))

    def _parameters(self, label: int) -> dict[str, float]:
        rng = np.random.default_rng(derive_seed(self.texture_seed, "texture parameters", label))
        start, pace = rng.random(len(RANGES)), 0.5 + 0.5 * rng.random(len(RANGES))
        # Towards the side with more room, so that every parameter moves as far as the dial says.
        at = start + self.dial * FURTHEST * pace * np.where(start < 0.5, 1, -1)
        low, high = np.array(list(RANGES.values())).T
        found = dict(zip(RANGES, low + at * (high - low), strict=True))
        return {**found, "scale": min(found["scale"], math.log2(self.size / 3))}  # a wave has three pixels or more

    def _drawn(self, label: int) -> np.ndarray:
        """(per_class, channels, size, size) uint8 images of one class, each with a place, phase and jitter of its own."""
        family, p, n, size = FAMILIES[label % 4], self._parameters(label), self.per_class, self.size
        rng = np.random.default_rng(derive_seed(self.texture_seed, "textures", self.instance, label))
        y, x = (np.mgrid[:size, :size] / size)[:, None]  # 1 size size, in image sides
        angle = (p["angle"] + rng.normal(0, 0.1, n))[:, None, None]
        cycles = 2 ** (p["scale"] + rng.normal(0, 0.1, n))[:, None, None]
        phase = rng.random((2, n, 1, 1)) * 2 * math.pi
        along = 2 * math.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)) + phase[0]
        across = 2 * math.pi * cycles * (y * np.cos(angle) - x * np.sin(angle)) + phase[1]
        if family == "gratings":
            z = np.sin(along) * math.sqrt(2)
        elif family == "checker":
            z = np.sign(np.sin(along) * np.sin(across))
        elif family == "spectrum":
            fy, fx = np.meshgrid(np.fft.fftfreq(size) * size, np.fft.rfftfreq(size) * size, indexing="ij")
            # Longer along `angle` than across, by the density.
            a, b = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
            radius = np.sqrt(a**2 + (b * (0.5 + p["density"])) ** 2)
            amplitude = np.where(radius > 0, np.maximum(radius, 1e-9) ** -p["slope"], 0)
            z = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(n, size, size))) * amplitude, s=(size, size))
        else:
            smooth = np.exp(-0.5 * (np.minimum(x, 1 - x) ** 2 + np.minimum(y, 1 - y) ** 2) * (2 * cycles) ** 2)
            dots = rng.random((n, size, size)) < p["density"] * 4.0 * cycles**2 / size**2
            z = np.fft.irfft2(np.fft.rfft2(dots) * np.fft.rfft2(smooth), s=(size, size))
        z = z - z.mean((1, 2), keepdims=True)
        z = z / np.maximum(z.std((1, 2), keepdims=True), 1e-6)
        level = p["brightness"] + rng.normal(0, 0.03, n)[:, None, None]
        # How strongly each channel shows the pattern.
        tint = 0.6 + 0.4 * np.cos(2 * math.pi * (p["hue"] - np.arange(3) / 3)) if self.channels == 3 else np.ones(1)
        grey = level[:, None] + p["contrast"] * z[:, None] * tint[None, :, None, None]
        grey = grey + rng.normal(0, 0.02, (n, self.channels, size, size))
        pixels: np.ndarray = np.round(np.clip(grey, 0, 1) * 255).astype(np.uint8)
        return pixels
