"""A run as it is planned: checked whole, on torch's meta device, before any weights are made. `RunPlan.build` makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from layergraft import surgery
from layergraft.config.metric_registry import Metric, recorded
from layergraft.config.registry import Hashable, hashable
from layergraft.config.schema import Config, Device, HostSpec, Precision
from layergraft.config.training_schema import ScheduleSpec
from layergraft.data.batches import BatchSpec
from layergraft.data.image_data import DataFacts, ImageData
from layergraft.data.normalization import require_channels
from layergraft.data.overlap import Learned, advice, leak
from layergraft.donors.donor_kind import DonorKind, key_of
from layergraft.errors import UserError, require
from layergraft.hosts import meta_device, sites, weights
from layergraft.hosts.layer_architectures import Architecture, Slot
from layergraft.hosts.norms import norm_paths, statistics_paths
from layergraft.hosts.resnet_blocks import on_meta, require_room
from layergraft.hosts.sites import Site
from layergraft.networks import pretrained_hosts
from layergraft.networks.network_cache import require_batch
from layergraft.runs.identity import axes, identity_of, key_by
from layergraft.store.records import run_folder
from layergraft.strategies.phases import Curves, TrainingPlan, make_plan, stage_roles
from layergraft.strategies.timeline import timeline
from layergraft.surgery import Operation
from layergraft.training.backend import Backend, lacks_bf16
from layergraft.training.recipe import Recipe, check

if TYPE_CHECKING:
    from layergraft.runs.build import BuiltRun


@dataclass(frozen=True)
class PlannedGraft:
    """A donor that is to go somewhere."""

    site: Site
    slot: Slot
    architecture: Architecture
    """Of the donor."""
    key: str
    """Of the donor."""


@dataclass(frozen=True)
class RunPlan:
    """A run that can be done, and all that is known of it before there are weights."""

    config: Config
    key: str
    identity: dict[str, Any]
    """All that decides the run's numbers; the key is its hash."""
    axes: dict[str, str | int]
    """The names by which people tell runs apart."""
    backend: Backend
    """Of the machine that it was planned on; `here` resolves it anew on another."""
    data: DataFacts
    host_key: str | None
    """Of the network that is pretrained to be the host; None where none is."""
    keeps_head: bool
    """Whether the host's classifier is the one that its weights were trained with."""
    sites: Mapping[str, Site]
    """Every site of the host by path."""
    grafts: tuple[PlannedGraft, ...]
    """None without a donor."""
    parameters: Mapping[str, int]
    """Name -> number of elements, of the network with its donors, in the order of the forward pass."""
    strategy: TrainingPlan
    batches: BatchSpec
    steps_per_epoch: int
    notes: tuple[str, ...] = ()
    """What a reader of its figures must know: a line each."""
    overrides: tuple[str, ...] = ()
    """What the run of a sweep was asked for with."""

    @property
    def donor_keys(self) -> tuple[str, ...]:
        """One for each site."""
        return tuple(graft.key for graft in self.grafts)

    @property
    def donor(self) -> DonorKind:
        """The donor of a run that has one, under its control."""
        return cast(DonorKind, self.config.donor).controlled()  # `config`, which imports no part, does not know kinds

    @property
    def operation(self) -> Operation:
        """The operation that puts a donor in."""
        return cast(Operation, self.config.surgery)

    @property
    def outputs(self) -> Path:
        return Path(self.config.exec.outputs)

    @property
    def folder(self) -> Path:
        """Where the run is, or will be."""
        return run_folder(self.outputs, self.key)

    @property
    def metrics(self) -> dict[str, Metric]:
        """What its record may have, by name."""
        return recorded(self.data.task.name, self.config.exec.probe.thresholds)

    def timeline(self, curves: Curves = ()) -> dict[str, Any]:
        """What learns when, as plain data; phases that wait for a plateau are where `curves` had them start."""
        schedule, lr = self.config.schedule, self.config.optim.lr
        return timeline(self.strategy, lr, schedule, self.steps_per_epoch, self.parameters.__getitem__, curves)

    def build(self) -> BuiltRun:
        """The network with its donors in place; donors are made first, if nobody has yet."""
        from layergraft.runs.build import build

        return build(self)

    def here(self) -> RunPlan:
        """The plan on this machine, which may not be the one that it was made on. Raises UserError where data, weights,
        donors' files or the arithmetic are others here and now."""
        backend, images = backend_of(self.config), images_of(self.config)
        donors = [key_of(self.donor, graft.slot, backend) for graft in self.grafts]
        host = _host_identity(self.config.host, self.keeps_head, backend)
        key = key_by(self.axes, identity_of(self.config, backend.precision, images, host, donors))
        why = "its data or files have changed, or precision=auto resolves differently here"
        mend = "set precision=float32 or bf16_mixed"
        require(key == self.key, f"it was planned as {self.key} and is {key} here: {why}; {mend}")
        return replace(self, backend=backend)


def plan_run(config: Config, overrides: Sequence[str] = ()) -> RunPlan:
    """Check a run without making anything, so that a large sweep is checked fast. Raises UserError for whatever in the
    config cannot be: this is all the checking there is."""
    backend, images, last = backend_of(config), images_of(config), config.schedule.epochs
    pretrained_hosts.require_usable(config.host, images)
    there = meta_device.sites_of(config.host, images.shape, images.num_classes)
    shaped = pretrained_hosts.untrained(config.host)  # what follows is the same for every seed of a pretrained host
    host = hashable(shaped), weights.fingerprint(shaped), images.shape, images.num_classes
    grafts = _grafts(config, host, there, backend) if config.donor.is_layer else ()
    where, architectures = tuple(graft.site for graft in grafts), tuple(graft.architecture for graft in grafts)
    of = *host, where, architectures, hashable(config.surgery)
    outline = _outline(*of)
    strategy = _strategy(of, hashable(config.strategy), last)
    _require_trainable(of, hashable(config.strategy), last, hashable(config.optim), backend)
    for epoch in config.exec.probe.epochs:
        require(epoch <= last, f"exec.probe.epochs has {epoch}, but training ends after {last} epochs")
    optim, data = config.optim, config.data
    batches = BatchSpec(optim.batch_size, optim.accumulate, data.shift, data.flip, config.regularizer.mixup)
    steps = batches.steps_per_epoch(len(images.train))
    keys, named = [graft.key for graft in grafts], axes(config)
    keeps_head = pretrained_hosts.keeps_head(config.host, images.facts)
    of_host = _host_identity(config.host, keeps_head, backend)
    known = identity_of(config, backend.precision, images, of_host, keys)
    return RunPlan(
        config, key_by(named, known), known, named, backend, images.facts, of_host["pretrain"], keeps_head, there, grafts,
        outline.parameters, strategy, batches, steps, (*_leaks(config, images, grafts), *images.notes), tuple(overrides),
    )  # fmt: skip


def _leaks(config: Config, images: ImageData, grafts: Sequence[PlannedGraft]) -> Iterator[str]:
    """A line for each network that learns from images which the run is to be judged by. Raises UserError for the first, unless such
    runs are allowed."""
    target = Learned("the run", "data", config.data.sized(config.host.input_size()), config.seed, images)
    sources = [pretrained_hosts.learned_from(config.host)]
    if grafts:  # all learn from the same images
        sources.append(cast(DonorKind, config.donor).controlled().learned_from(grafts[0].slot))
    for source in sources:
        if source is None or (found := leak(source, target)) is None:
            continue
        if not config.exec.allow_leak:
            instead = "exec.allow_leak=true does the run all the same"
            raise UserError(f"{source.at}: {found}; {advice(source, target)}; {instead}")
        yield f"{found} (exec.allow_leak=true)"


def _host_identity(host: HostSpec, keeps_head: bool, backend: Backend) -> dict[str, Any]:
    """What decides the weights that a host starts from."""
    key = pretrained_hosts.key_of(host, backend)
    known: dict[str, Any] = {
        "weights": weights.fingerprint(host),
        "pretrain": key,
        "head": "kept" if keeps_head else "new",
    }
    if host.weights_name() is not None:  # the same weights in a file do not tell by which figures images are normalised
        known["named"] = True
    return known


def backend_of(config: Config) -> Backend:
    """Where and how to train the run itself; its donors are always trained on one device, as they are written."""
    backend = Backend.resolve(config.exec.device, config.precision)
    names = ("devices", "compile", "channels_last", "features_gib")
    return replace(backend, beside=config.exec.workers or 1, **{name: getattr(config.exec, name) for name in names})


def precision_note(plan: RunPlan) -> str | None:
    """A line for people where `precision=auto` is not the bf16 that a GPU usually has; None elsewhere."""
    if plan.config.precision is Precision.auto and plan.backend.device == "cuda" and lacks_bf16():
        return f"precision:   float32, since {torch.cuda.get_device_name()} has no bf16 in hardware"
    return None


def for_gpus(config: Config) -> Config:
    """The same run, to be planned here and done where there is a GPU."""
    if config.precision is Precision.auto and config.exec.device is not Device.cpu and not torch.cuda.is_available():
        return replace(config, precision=Precision.bf16_mixed)
    return config


def images_of(config: Config) -> ImageData:
    """The run's images, with the channels that the host takes. Raises UserError where they are too few for a batch, or lack
    the metric of a plateau."""
    images: ImageData = config.images()
    require_batch("optim", config.optim, images)
    require_channels("data", config.data.normalize, images.channels)
    waits = {f"strategy.phases.{name}.plateau": phase.plateau for name, phase in config.strategy.phases.items()}
    for at, plateau in ({"schedule.early_stopping": config.schedule.early_stopping} | waits).items():
        plateau.require_task(at, images.task.name)
    return images


def _grafts(
    config: Config, host: tuple[Any, ...], there: dict[str, Site], backend: Backend
) -> tuple[PlannedGraft, ...]:
    """The grafts in the host whose `_slot` the arguments `host` give."""
    kind = sites.BLOCK if config.donor.kind == "block" else sites.CONV
    where = [sites.resolve(there, site, config.host.name, kind) for site in config.sites]
    surgery.require_apart(where)
    places = [(site, _slot(*host, site, hashable(config.surgery))) for site in where]
    donor = cast(DonorKind, config.donor).controlled()
    return tuple(PlannedGraft(site, at, donor.architecture(at), key_of(donor, at, backend)) for site, at in places)


@lru_cache(maxsize=1024)
def _slot(
    host: Hashable, weights: str | None, image: tuple[int, int, int], num_classes: int, site: Site, operation: Hashable
) -> Slot:
    return surgery.slot_of(meta_device.meta_host(host.spec, image, num_classes), site, operation.spec, image)


@dataclass(frozen=True)
class _Outline:
    """A network without weights, and what strategies look at of it."""

    network: nn.Module
    parameters: Mapping[str, int]
    roles: Mapping[str, Sequence[str]]
    stages: tuple[str, ...]
    blocks: tuple[str, ...]
    moved: Mapping[str, str]
    """Parameter of the host's that surgery has given another name -> its name in the host."""


@lru_cache(maxsize=256)
def _outline(
    host: Hashable, weights: str | None, image: tuple[int, int, int], num_classes: int,
    where: tuple[Site, ...], architectures: tuple[Architecture, ...], operation: Hashable,
) -> _Outline:  # fmt: skip
    """The outline of a network with its donors; the arguments are all that decides its shape."""
    spec: HostSpec = host.spec
    donors = [(site, on_meta(architecture.build)) for site, architecture in zip(where, architectures, strict=True)]
    meta_host = meta_device.meta_host(spec, image, num_classes)
    grafted = surgery.graft(meta_host, donors, operation.spec, image, spec.roles["head"])
    require_room("the network with its donors", grafted.network)
    before, after = (grafted.parts["host before"], grafted.parts["host after"]) if donors else ((), ())
    there = meta_device.sites_of(spec, image, num_classes)
    stages, blocks = (tuple(p for p, site in there.items() if site.kind == kind) for kind in (sites.STAGE, sites.BLOCK))
    stages = tuple(spec.family.stages) or stages
    roles = {**spec.roles, **stage_roles(stages), **grafted.roles, "before": before, "after": after}
    roles["norm"] = norm_paths(grafted.network)
    sizes = {name: parameter.numel() for name, parameter in grafted.network.named_parameters()}
    return _Outline(grafted.network, sizes, roles, stages, blocks, grafted.moved)


@lru_cache(maxsize=1024)
def _require_trainable(of: tuple[Any, ...], strategy: Hashable, epochs: int, optim: Hashable, backend: Backend) -> None:
    """Raise UserError for an optimizer that cannot train the network `of`, or devices that cannot share it."""
    recipe = Recipe(optim.spec, ScheduleSpec(epochs=epochs))
    check(_outline(*of).network, _strategy(of, strategy, epochs), recipe, backend)


@lru_cache(maxsize=1024)
def _strategy(of: tuple[Any, ...], strategy: Hashable, epochs: int) -> TrainingPlan:
    """The strategy's plan for the network whose `_outline` the arguments `of` give."""
    outline = _outline(*of)
    norms, names = statistics_paths(outline.network), list(outline.parameters)
    return make_plan(strategy.spec, names, norms, outline.roles, epochs, outline.blocks, outline.stages, outline.moved)
