"""Which images a run uses, in dataclasses: a set, the part of it, what is done to them. Kinds of sets stand in
`layergraft.data`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from layergraft.config.registry import bounded, canonical, one_of, register
from layergraft.errors import UserError, require, unknown

PARTS = ("train", "val", "test")
SEVERITY = "a severity is 0 (none) to 5"
COUNT = "it must be 1 or more, or null for all"
SHARE = "it is a share between 0 and 1"


@dataclass
class CorruptionSpec:
    """What is done to the images of `splits`, the same for every seed, and to the labels that are trained on.

    Severities are those of CIFAR-10-C, 1 to 5; 0: none.
    """

    noise: int = bounded(0, "[0, 5]", SEVERITY)
    """Gaussian."""
    blur: int = bounded(0, "[0, 5]", SEVERITY)
    """Gaussian."""
    contrast: int = bounded(0, "[0, 5]", SEVERITY)
    """Less of it."""
    blocks: int | None = bounded(None, "[1, inf)", "it must be 1 or more, or null")
    """Each image is cut into blocks of this many pixels a side, which are shuffled; null: it is not."""
    channels: list[int] = field(default_factory=list)
    """The images' channels in another order, such as [2,1,0]; empty: as they are."""
    splits: list[str] = field(default_factory=lambda: [*PARTS])
    """The splits whose images are corrupted; [test] shifts the test images alone. `labels` acts on the training split whatever stands
    here."""
    labels: float = bounded(0.0, "[0, 1]", "it is a share, 0 to 1")
    """Share of the training labels that are replaced by another class, drawn by the run's seed."""

    def check(self, at: str) -> None:
        require(
            sorted(self.channels) == list(range(len(self.channels))),
            f"{at}.channels is {self.channels}; it names each channel once, such as [2,1,0]",
        )
        require(len(self.splits) > 0, f"{at}.splits is empty; it names one or more of {', '.join(PARTS)}")
        for part in self.splits:
            if part not in PARTS:
                raise unknown(f"split in {at}.splits:", part, PARTS)


@dataclass
class DataSpec:
    """A data set and the part of it that is used. Kinds: `layergraft.data`."""

    name: str = MISSING
    """Its name in keys and reports; of kinds that have several, which."""
    classes: list[int] = field(default_factory=list)
    """The classes to keep, relabelled 0, 1, ... in this order; empty: all. Of a multi-label set: the labels."""
    half: str | None = one_of(None, ("A", "B"))
    """A or B: one half of the set, of its classes or of its images; null: not halved."""
    halves: str = one_of("random", ("random", "semantic", "images"))
    """random: of the classes; semantic: of the classes, where the set knows such halves: CIFAR-10's animals (A) and vehicles
    (B); images: of the images, with the same share of every class; a half's splits are its part of the whole set's."""
    halves_seed: int = 0
    """Of halves that are drawn. They are the same whatever the run's seed and `split_seed`."""
    train_size: int | None = bounded(None, "[1, inf)", COUNT)
    """Few-shot: training images in all, drawn as `few_shot` says; null: all."""
    train_per_class: int | None = bounded(None, "[1, inf)", COUNT)
    """Few-shot: training images of each class, in place of `train_size`."""
    few_shot: str = one_of("balanced", ("balanced", "stratified"))
    """How `train_size` is shared out among the classes. balanced: the same number of each class, give or take one; stratified: by the
    classes' shares of the training split, with largest-remainder rounding. A multi-label set is drawn from at random."""
    few_shot_seed: int | None = bounded(None, "[0, inf)", "it must be 0 or more, or null")
    """Of the few-shot images; null: the seed of the network that is trained on them, as with `split_seed`."""
    val_share: float = bounded(0.1, "(0, 1)", SHARE)
    """Of what is not test: the validation split of a set that has none of its own."""
    test_share: float = bounded(0.2, "(0, 1)", SHARE)
    """Of all: the test split of a set that has no splits of its own."""
    split_seed: int | None = bounded(None, "[0, inf)", "it must be 0 or more, or null")
    """Of the splits that are drawn: those a set does not have of its own. null: the seed of the network that is trained on them:
    `seed`, `donor.seed` or `host.pretrain.seed`. A number gives all seeds the same splits."""
    resplit: str | None = one_of(None, PARTS)
    """Use only this one of a set's own splits, and draw training, validation and test split from it; null: all of them, as they
    are."""
    normalize: Any = "auto"
    """By which mean and deviation of each channel (of images from 0 to 1) images are normalised: auto, train (the training
    split's), or [[means],[deviations]]. auto: those that the host's weights were trained with where they are known, else train."""
    corrupt: CorruptionSpec = field(default_factory=CorruptionSpec)
    shift: int = bounded(0, "[0, inf)", "it is a number of pixels, 0 or more")
    """Augmentation: each training image is moved by up to this many pixels each way, the gap filled with black."""
    flip: bool = False
    """Augmentation: half of the training images, drawn anew each epoch, are mirrored left to right."""
    class_weights: str = one_of("none", ("none", "balanced"))
    """none, or balanced: in the training loss, an image counts N / (K N_k), with N training images, K classes and N_k images of
    its class; of a multi-label set, having a label counts as much more as images without it outnumber those with it."""
    sampler: str = one_of("uniform", ("uniform", "balanced"))
    """uniform: an epoch has each training image once. balanced: its images are drawn with replacement, each class as often as
    any other; not of a multi-label set."""

    # Fields that say where files are and how many cores decode them: they change no result.
    location_fields: ClassVar[tuple[str, ...]] = ()

    def sized(self, pixels: int | None) -> DataSpec:
        """This set with images of `pixels` a side, where their size is open and `pixels` is known."""
        return self

    def load(self, seed: int) -> Any:
        """An `ImageData`, which is no part of the config: `layergraft.data.data_set` makes it."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What of it decides a run's numbers, beside the content of its files."""
        return {name: value for name, value in canonical(self).items() if name not in self.location_fields}

    def check(self, at: str) -> None:
        require(
            self.train_size is None or self.train_per_class is None,
            f"{at}.train_size and {at}.train_per_class are both set; one of them must be null",
        )
        require(
            self.few_shot == "balanced" or self.train_per_class is None,
            f"{at}.few_shot is {self.few_shot}, but {at}.train_per_class takes the same number of each class; "
            f"{at}.train_size takes their shares",
        )
        require(len(set(self.classes)) == len(self.classes), f"{at}.classes names a class twice: {self.classes}")
        require(
            self.half is None or self.halves == "images" or not self.classes,
            f"{at}.half and {at}.classes both choose classes; one of them must be left out",
        )
        _check_normalize(at, self.normalize)


def _check_normalize(at: str, given: Any) -> None:
    """Raise UserError for what is no way to normalise images."""
    if given in ("auto", "train"):
        return
    form = "it must be auto, train or [[means],[deviations]], such as [[0.5],[0.25]] for grey images"
    is_pair = isinstance(given, list) and len(given) == 2 and all(isinstance(part, list) for part in given)
    require(is_pair, f"{at}.normalize is {given}; {form}")
    numbers = [number for part in given for number in part]
    are_numbers = all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    alike = len(given[0]) == len(given[1]) in (1, 3)
    require(are_numbers and alike and all(n > 0 for n in given[1]), f"{at}.normalize is {given}; {form}")
    of_bytes = f"{at}.normalize is {given}, but it is of images from 0 to 1; divide means and deviations by 255"
    require(all(0 <= n <= 1 for n in given[0]) and all(n <= 1 for n in given[1]), of_bytes)


@register("data", "none")
@dataclass
class NoData(DataSpec):
    """The choice `none`, where a data set may be left out: past the entry it is None."""

    name: str = "none"

    def check(self, at: str) -> None:
        raise UserError(f"{at}=none: only host.pretrain.data can be none; choose a data set")
