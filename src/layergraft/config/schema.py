"""The typed config: what a run is, in dataclasses; its canonical form; the checks that need nothing else.

The root `Config` is the schema that `conf/config.yaml` merges into, so a misspelt key or a wrong type fails
when the config is composed. Data sets, hosts, donors and surgery operations come in kinds: each kind's dataclass stands
beside the code that builds it, subclasses the base here, and is registered under its group with `registry.register`.
No dataclass here or there may import torch when its module is imported: `--help` and reports must start at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from layergraft.config.data_schema import DataSpec, NoData
from layergraft.config.registry import bounded, one_of
from layergraft.config.training_schema import OptimSpec, RegularizerSpec, ScheduleSpec, StrategySpec
from layergraft.errors import require

CHANNEL_MATCHING = ("strict", "project", "slice", "tile", "sum", "average")
RESULT_VERSION = 9  # raise it when the code changes so that the same config gives other numbers


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
class PretrainSpec:
    """How a host is trained before a donor goes into it."""

    data: DataSpec | None = None
    """The data set that it is trained on; none: it is not, and has the initial weights of the run's seed."""
    optim: OptimSpec = field(default_factory=OptimSpec)
    """As the run's own: `host.pretrain.optim=sgd` chooses another, `host.pretrain.optim.lr=0.1` sets a key."""
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    """As the run's own."""
    seed: int = bounded(0, "[0, inf)")
    """Of initial weights, order of images and few-shot selection; conf/config.yaml makes it the run's. A fixed one gives all runs
    the same host."""

    def __post_init__(self) -> None:
        # `none` leaves nothing of the keys that a size or an experiment had set: a control may take the data away.
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
    allow_leak: bool = False
    """Do runs whose donor or pretrained host has learned from images of the target's own validation or test split. It is an error
    otherwise; allowed, it is a warning at the start, in the record and at the top of the report."""
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
    init_seed: int | None = bounded(None, "[0, inf)")
    """Of initial weights: a host's that has no trained ones, a new classifier's, adapters'; null: seed."""
    order_seed: int | None = bounded(None, "[0, inf)")
    """Of the order of the training images and their augmentation; null: seed."""
    precision: Precision = Precision.auto
    """float32, bf16_mixed or auto: bf16 on a GPU that has it in hardware (compute capability 8.0 and up), else float32."""
    exec: ExecSpec = field(default_factory=ExecSpec)

    @property
    def sites(self) -> list[str | float]:
        """What `site` names, one by one."""
        return self.site if isinstance(self.site, list) else [self.site]

    def seed_of(self, what: str) -> int:
        """The seed that draws `init` or `order`."""
        own: int | None = getattr(self, f"{what}_seed")
        return self.seed if own is None else own

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
