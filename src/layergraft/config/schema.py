"""The typed config: what a run is, in dataclasses; its canonical form; the checks that need nothing else.

The root `Config` is the schema that `conf/config.yaml` merges into, so a misspelt key or a wrong type fails
when the config is composed. Data sets, hosts, donors and surgery operations come in kinds: each kind's dataclass stands
beside the code that builds it, subclasses the base here, and is registered under its group with `registry.register`.
No dataclass here or there may import torch when its module is imported: `--help` and reports must start at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from layergraft.config.registry import bounded, canonical, one_of, register
from layergraft.config.training_schema import OptimSpec, RegularizerSpec, ScheduleSpec, StrategySpec
from layergraft.errors import UserError, require

CHANNEL_MATCHING = ("strict", "project", "slice", "tile", "sum", "average")
SEVERITY = "a severity is 0 (none) to 5"
COUNT = "it must be 1 or more, or null for all"
SHARE = "it is a share between 0 and 1"
RESULT_VERSION = 8  # raise it when the code changes so that the same config gives other numbers


class Precision(Enum):
    """The arithmetic of training. It changes results, so it is in a run's key."""

    auto = "auto"
    """bf16_mixed on CUDA, float32 on a CPU; replaced by what it stands for before the key is made."""
    float32 = "float32"
    bf16_mixed = "bf16_mixed"


class Device(Enum):
    """Where to train. It is recorded, not keyed."""

    auto = "auto"
    """CUDA where there is one, else the CPU."""
    cuda = "cuda"
    cpu = "cpu"


@dataclass
class CorruptionSpec:
    """What is done to all images of a set, the same for every seed, and to the labels that are trained on.

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
    labels: float = bounded(0.0, "[0, 1]", "it is a share, 0 to 1")
    """Share of the training labels that are replaced by another class, drawn by the run's seed."""

    def check(self, at: str) -> None:
        require(
            sorted(self.channels) == list(range(len(self.channels))),
            f"{at}.channels is {self.channels}; it names each channel once, such as [2,1,0]",
        )


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
    (B); images: of the images, each split's on its own, with the same share of every class."""
    halves_seed: int = 0
    """Of halves that are drawn, which are then the same whatever the run's seed."""
    train_size: int | None = bounded(None, "[1, inf)", COUNT)
    """Training images in all, the same number of each class (give or take one), drawn by the run's seed; null: all."""
    train_per_class: int | None = bounded(None, "[1, inf)", COUNT)
    """Training images of each class, in place of `train_size`."""
    val_share: float = bounded(0.1, "(0, 1)", SHARE)
    """Of what is not test: the validation split of a set that has none of its own."""
    test_share: float = bounded(0.2, "(0, 1)", SHARE)
    """Of all: the test split of a set that has no splits of its own."""
    split_seed: int = 0
    """Of the splits that are drawn: those a set does not have of its own. They are the same whatever the run's seed."""
    resplit: str | None = one_of(None, ("train", "val", "test"))
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


@register("data", "none")
@dataclass
class NoData(DataSpec):
    """The choice `none`, where a data set may be left out: past the entry it is None."""

    name: str = "none"

    def check(self, at: str) -> None:
        raise UserError(f"{at}=none: only host.pretrain.data can be none; choose a data set")


@dataclass
class PretrainSpec:
    """How a host is trained before a donor goes into it."""

    data: DataSpec | None = None
    """The data set that it is trained on; none: it is not, and has the initial weights of the run's seed."""
    optim: OptimSpec = field(default_factory=OptimSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    seed: int = bounded(0, "[0, inf)")
    """Of initial weights, order of images and few-shot selection; conf/config.yaml makes it the run's. A fixed one gives all runs
    the same host."""

    def __post_init__(self) -> None:
        if isinstance(self.data, NoData):
            self.data = None


@dataclass
class HostSpec:
    """The multi-layer network that receives the donor. Kinds: `layergraft.hosts`."""

    name: str = MISSING
    """Which network of its kind."""
    in_channels: int | None = one_of(None, (1, 3), "it must be 1, 3 or null")
    """Of the images it takes: 1 or 3; the data's images are averaged or repeated to fit. null: as the data has them."""
    weights: str | None = None
    """Trained weights to start from: a name of torchvision's (IMAGENET1K_V1, DEFAULT) or a file; null: none."""
    pretrain: PretrainSpec = field(default_factory=PretrainSpec)
    head: str = one_of("auto", ("auto", "keep", "new"))
    """Whether the classifier of trained weights is kept, or a new one with initial weights put in its place. auto: kept where the
    class names agree; where they are not known, as those of a file, where the number of classes agrees."""

    @property
    def family(self) -> Any:
        """The `Family` of networks that it is of (`layergraft.hosts.families`): kinds have it as a plain attribute of the class."""
        raise NotImplementedError(f"{type(self).__name__} has no family")

    @property
    def roles(self) -> dict[str, list[str]]:
        """What strategies refer to by role: role -> module paths."""
        return {"stem": list(self.family.stem), "head": list(self.family.head)}

    def build(self, image: tuple[int, int, int], num_classes: int, seed: int) -> Any:
        """The network, an `nn.Module` with the initial weights of `seed`, for images of shape `image` (channels, height, width)."""
        raise NotImplementedError

    def weights_name(self) -> str | None:
        """Torchvision's name in `weights`; None where there is none or it is a file."""
        is_file = self.weights is not None and (re.search(r"[./\\]", self.weights) or Path(self.weights).is_file())
        return None if is_file else self.weights

    def input_size(self) -> int | None:
        """Pixels a side of the images that its weights were trained on; None where that is not known."""
        return None

    @property
    def comes_with_weights(self) -> bool:
        """Whether it has weights that were trained elsewhere."""
        return self.weights is not None

    @property
    def is_pretrained(self) -> bool:
        """Whether it is to be trained here before a donor goes into it."""
        return self.pretrain.data is not None

    def check(self, at: str) -> None:
        """Raise UserError for values that do not go together."""
        both = f"{at}.weights and {at}.pretrain.data are both set; give {at}.pretrain.data=none or {at}.weights=null"
        require(self.weights is None or not self.is_pretrained, both)
        require(
            self.head != "keep" or self.comes_with_weights or self.is_pretrained,
            f"{at}.head is keep, but the host has no trained weights",
        )


@dataclass
class DonorSpec:
    """The layer that was trained on its own, or a control in its place. Kinds: `layergraft.donors`."""

    name: str = MISSING
    """Its name in keys and reports; of kinds that have several, which."""
    kind: str | None = one_of(None, ("conv", "stem", "block"))
    """conv, stem (convolution, norm, ReLU) or block; null: what the site is."""

    is_layer = True  # but for the one that stands for no donor

    def check(self, at: str) -> None:
        """As `HostSpec.check`."""


@dataclass
class SurgerySpec:
    """How the donor goes into the host. Operations: `layergraft.surgery`."""

    name: str = MISSING
    """Its name in reports."""
    channel_matching: str = one_of("strict", CHANNEL_MATCHING)
    """strict, project, slice, tile, sum or average: how channels that differ are matched."""
    adapter_init: str = one_of("least_squares", ("least_squares", "identity", "random"))
    """How project's 1 x 1 convolutions are initialised: least_squares, identity or random."""
    bias: str = one_of("keep", ("keep", "drop", "fold"))
    """keep, drop, or fold into the batch norm that follows."""
    calibrate: str = one_of("none", ("none", "batch_norm", "moments", "lsuv"))
    """none, batch_norm (re-estimated statistics), moments or lsuv."""
    images: int = bounded(512, "[2, inf)")
    """Training images that calibration and least squares look at, in batches of 128; all of them where there are fewer."""

    def check(self, at: str) -> None:
        """As `HostSpec.check`."""


@dataclass
class ProbeSpec:
    """What is looked at beside training: it goes to TensorBoard and the record, and changes no result.

    A run that is in the store already is not run again for other probes; exec.rerun=true does.
    """

    epochs: list[int] = bounded(lambda: [0, -1], "[-1, inf)", "it must be 0 or more, or -1 for the end")
    """After how many epochs to look: 0 is before the first step, -1 the end; empty: never."""
    images: int = bounded(256, "[2, inf)")
    """Validation images to look at, the first ones."""
    thresholds: list[float] = bounded(lambda: [50.0, 75.0, 90.0], "(0, 100]", "it must be in (0, 100], in percent")
    """Validation accuracies in percent; the steps to each are recorded."""


@dataclass
class SimilaritySpec:
    """How alike source and target are, measured beside training: it goes to the record, and changes no result."""

    resamples: int = bounded(10, "[0, inf)")
    """Halves of the images that each measure is taken on; 0: nothing is measured."""
    images: int = bounded(512, "[16, inf)")
    """Training images of each set to look at."""


@dataclass
class ExecSpec:
    """How to run: nothing here can change a result, but for the last bits of a sum where that is said, and for what the
    probes add to a record."""

    device: Device = Device.auto
    """auto, cuda or cpu."""
    outputs: str = "outputs"
    """The folder of runs/, donors/, data/ and sweeps/."""
    data: str = "data"
    """The folder of data sets' files, where those that are downloaded go."""
    data_gib: float | None = bounded(None, "[0, inf]")
    """Images that take more memory than this on the device are read batch by batch from the disk; null: half of what is
    free there."""
    reader_threads: int = bounded(4, "[1, inf)")
    """Threads that read such batches."""
    sweep: str | None = None
    """The sweep's name, its folder under sweeps/; null: the experiment's where nothing else is overridden, else made from the
    overrides, the same for the same command."""
    workers: int | None = bounded(None, "[1, inf)")
    """Runs at a time in a sweep; null: one a core, or `jobs_per_gpu` on each GPU. A run of a sweep is told how many there are
    where it is."""
    jobs_per_gpu: int = bounded(1, "[1, inf)")
    """Runs of a sweep side by side on each GPU."""
    threads: int | None = bounded(None, "[1, inf)")
    """Threads of one run; null: one in a sweep, all cores for a single run. It changes the last bits of a sum."""
    devices: int = bounded(1, "[1, inf)")
    """Devices that share each batch of one run (DDP; processes on a CPU). It changes the last bits of a sum."""
    compile: bool = False
    """torch.compile, anew for each phase of a strategy. It changes the last bits of a sum."""
    channels_last: bool | None = None
    """Whether a pixel's channels lie side by side in memory; null: where that was measured to be faster. It changes the last
    bits of a sum."""
    features_gib: float | None = bounded(None, "[0, inf]")
    """What may be kept on the device of what the frozen layers before the first that trains give, so that they are run once
    and not in every epoch; null: a tenth of what is free there; 0: nothing. It changes no bit."""
    checkpoint_seconds: float | None = bounded(None, "[0, inf]", "it must be 0 or more, or null")
    """A run can go on from its last checkpoint. Seconds between two; 0: one after every step; null: as often as costs 2%
    of the time."""
    probe: ProbeSpec = field(default_factory=ProbeSpec)
    similarity: SimilaritySpec = field(default_factory=SimilaritySpec)
    retries: int = bounded(2, "[0, inf)")
    """Times that a sweep tries a run again after what may pass: a worker that was killed, an error of a disk or of CUDA.
    What has run out of memory is tried with fewer runs beside it, until it is alone."""
    rerun: bool = False
    """Do again what is in the store already, the donors too."""

    def check(self, at: str) -> None:
        require(
            self.sweep is None or re.fullmatch(r"[\w.-]*\w[\w.-]*", self.sweep) is not None,
            f"{at}.sweep is '{self.sweep}'; a sweep's name is letters, digits, '.', '_' and '-'",
        )


@dataclass
class Config:
    """One run: an arm (donor, site, strategy in a host on some data) with its seed."""

    data: DataSpec = MISSING
    host: HostSpec = MISSING
    donor: DonorSpec = MISSING
    site: Any = MISSING
    """Where the donor goes: early, middle, late, a relative depth from 0.0 to 1.0, a module path such as layer3.0.conv1,
    or a list of them."""
    surgery: SurgerySpec = MISSING
    strategy: StrategySpec = field(default_factory=StrategySpec)
    optim: OptimSpec = field(default_factory=OptimSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    regularizer: RegularizerSpec = field(default_factory=RegularizerSpec)
    seed: int = bounded(0, "[0, inf)")
    """Of everything drawn by chance, each from a stream of its own."""
    precision: Precision = Precision.auto
    """float32, bf16_mixed or auto: bf16 on a GPU that has it in hardware (compute capability 8.0 and up), else float32."""
    exec: ExecSpec = field(default_factory=ExecSpec)

    @property
    def sites(self) -> list[str | float]:
        """What `site` names, one by one."""
        return self.site if isinstance(self.site, list) else [self.site]

    def images(self) -> Any:
        """The run's `ImageData`, with the channels that the host takes."""
        return self.data.sized(self.host.input_size()).load(self.seed).with_channels(self.host.in_channels)

    def check(self, at: str) -> None:
        require(len(self.sites) > 0, "site is an empty list; it names one place or more")
        for site in self.sites:
            require(
                isinstance(site, (str, int, float)) and not isinstance(site, bool),
                f"site is {self.site}; it must be a name, a relative depth or a list of them",
            )


ConfigStore.instance().store(name="schema", node=Config, provider="layergraft")
