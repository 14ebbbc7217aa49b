"""One run put together from its config: checked, named by its key, ready to train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from layergraft import surgery
from layergraft.data.batches import Batches, BatchSpec, Normalize
from layergraft.data.images import ImageData
from layergraft.donors import NoDonor
from layergraft.donors.cache import AnyDonor, Donor, forget_donor, key_of, obtain, require_batch
from layergraft.donors.forms import Form, Place
from layergraft.errors import require
from layergraft.files import digest, label
from layergraft.hosts import sites, skeletons, weights
from layergraft.hosts.blocks import blank, require_room
from layergraft.hosts.sites import Site
from layergraft.recipes import ScheduleSpec, StrategySpec
from layergraft.schema import Keyed, canonical, keyed
from layergraft.seeds import stream
from layergraft.specs import RESULT_VERSION, Config, Device, HostSpec, Precision
from layergraft.strategies import Curves, Plan, make_plan
from layergraft.surgery import Grafted
from layergraft.timeline import timeline
from layergraft.training.fit import Backend, Recipe, check, lacks_bf16
from layergraft.training.module import all_norm_paths, norm_paths
from layergraft.training.probes import Probes, Subject


@dataclass(frozen=True)
class Assembled:
    """A run ready to train."""

    key: str
    identity: dict[str, Any]
    """All that decides the run's numbers; the key is its hash."""
    donor_keys: tuple[str, ...]
    """A key for each site; none without a donor."""
    donors: tuple[Donor, ...]
    """A donor for each site; none without a donor, and where the run has only been checked."""
    grafted: Grafted | None
    """None without a donor."""
    network: nn.Module
    plan: Plan
    data: ImageData
    backend: Backend


def axes(config: Config) -> dict[str, str | int]:
    """The names by which people tell runs apart."""
    return {
        "strategy": config.strategy.name,
        "site": "-" if isinstance(config.donor, NoDonor) else "+".join(str(site) for site in config.sites),
        "host": config.host.name,
        "donor": config.donor.name,
        "data": config.data.name,
        "seed": config.seed,
    }


def donor_of(config: Config) -> AnyDonor:
    """The donor of a run that has one."""
    return cast(AnyDonor, config.donor)  # `specs`, which imports no part, does not know what kinds have


def outputs_of(config: Config) -> Path:
    return Path(config.exec.outputs)


def backend_of(config: Config) -> Backend:
    """Where and how to train the run itself; its donors are always trained on one device, as they are written."""
    backend = Backend.resolve(config.exec.device, config.precision)
    names = ("devices", "compile", "channels_last", "features_gib")
    return replace(backend, beside=config.exec.workers or 1, **{name: getattr(config.exec, name) for name in names})


def precision_note(config: Config) -> str | None:
    """A line for people where `precision=auto` is not the bf16 that a GPU usually has; None elsewhere."""
    if config.precision is Precision.auto and backend_of(config).device == "cuda" and lacks_bf16():
        return f"precision:   float32, since {torch.cuda.get_device_name()} has no bf16 in hardware"
    return None


def for_gpus(config: Config) -> Config:
    """The same run, to be planned here and done where there is a GPU."""
    if config.precision is Precision.auto and config.exec.device is not Device.cpu and not torch.cuda.is_available():
        return replace(config, precision=Precision.bf16_mixed)
    return config


def batch_spec(config: Config) -> BatchSpec:
    return BatchSpec(
        config.optim.batch_size, config.optim.accumulate, config.data.shift, config.data.flip, config.regularizer.mixup
    )


def recipe_of(config: Config) -> Recipe:
    return Recipe(config.optim, config.schedule, config.regularizer)


def set_threads(config: Config) -> None:
    """Give torch the run's threads, where it says how many."""
    if config.exec.threads is not None:
        torch.set_num_threads(config.exec.threads)


def identity(config: Config, backend: Backend, fingerprint: str, donor_keys: Sequence[str]) -> dict[str, Any]:
    """All that decides a run's numbers: its config less `exec`, and the content of its data, weights and donors."""
    body = canonical(config)
    del body["exec"]
    body["precision"] = backend.precision
    body["data"] = config.data.identity()
    body["host"]["weights"] = weights.fingerprint(config.host)
    body["donor"] = list(donor_keys)  # a donor's key holds all that it is, its file by content
    body["site"] = config.sites
    if config.optim.name.lower() != "sgd":
        del body["optim"]["momentum"]  # others take theirs from the options
    operation = body["surgery"]
    looks = operation["calibrate"] != "none" or (operation["fit"], operation["start"]) == ("project", "least_squares")
    acts = {"where": operation["name"] == "insert", "start": operation["fit"] == "project", "images": looks}
    for name in (name for name, does in acts.items() if not does):
        del operation[name]
    if isinstance(config.donor, NoDonor):
        body["site"] = body["surgery"] = None  # nothing goes anywhere: the arm is the same for every site
    return {"version": RESULT_VERSION, "config": body, "data": fingerprint}


def assemble(config: Config) -> Assembled:
    """The network with the donor in place (made first, if nobody has yet) and the plan for it.

    Raises UserError as `checked` does.
    """
    backend, data = backend_of(config), _data(config)
    host = weights.pretrained(config.host, data.shape, data.num_classes, config.seed)
    donors: list[Donor] = []

    def donor_at(place: Place) -> nn.Module:
        donors.append(obtain(donor_of(config), place, backend, outputs_of(config)))
        return donors[-1].layer

    run = _put_together(config, backend, data, host, donor_at)
    if run.grafted is None:
        return run
    device = torch.device(backend.device)
    run.grafted.host.to(device)
    run.network.to(device)
    with backend.arithmetic():
        grafted = surgery.calibrated(run.grafted, calibration_images(config, data)[0].to(device), config.surgery)
    grafted.host.cpu()
    grafted.network.cpu()
    return replace(run, donors=tuple(donors), grafted=grafted, network=grafted.network)


def calibration_images(config: Config, data: ImageData) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to `surgery.images` training images, normalised, as the seed draws them, and their labels."""
    generator = torch.Generator().manual_seed(stream(config.seed, "calibration"))
    index = torch.randperm(len(data.train), generator=generator)[: config.surgery.images].numpy()
    chosen = data.train.take(index)
    normalize = Normalize(data.train, torch.device("cpu"))
    return normalize(torch.from_numpy(chosen.x_NCHW)), torch.from_numpy(chosen.y_N)


def checked(config: Config) -> Assembled:
    """The same without weights, so that a large sweep is checked fast; nothing is trained.

    Raises UserError for whatever in the config cannot be: this is all the checking there is.
    """
    backend, data = backend_of(config), _data(config)
    return _put_together(config, backend, data, _skeleton(config, data), None)


def _data(config: Config) -> ImageData:
    data: ImageData = config.data.load(config.seed).with_channels(config.host.in_channels)
    require_batch("optim", config.optim, data)
    return data


def sites_of(config: Config, data: ImageData) -> dict[str, Site]:
    """Every site of this run's host."""
    return skeletons.sites_of(config.host, data.shape, data.num_classes)


def _skeleton(config: Config, data: ImageData) -> nn.Module:
    return skeletons.skeleton(config.host, data.shape, data.num_classes)


@lru_cache(maxsize=256)
def _grafted_skeleton(
    host: nn.Module, where: tuple[Site, ...], forms: tuple[Form, ...], operation: Keyed, image: tuple[int, int, int]
) -> Grafted:
    donors = [(site, blank(form.build)) for site, form in zip(where, forms, strict=True)]
    return surgery.graft(host, donors, operation.spec, image)


@lru_cache(maxsize=1024)
def _place(host: nn.Module, site: Site, operation: Keyed, image: tuple[int, int, int]) -> Place:
    return surgery.place_of(host, site, operation.spec, image)


@dataclass(frozen=True, eq=False)
class _Outline:
    """All that a plan looks at, of a network without weights."""

    skeleton: nn.Module
    roles: dict[str, Sequence[str]]
    blocks: tuple[str, ...]

    def plan(self, network: nn.Module, strategy: StrategySpec, epochs: int) -> Plan:
        names = [name for name, _ in network.named_parameters()]
        return make_plan(strategy, names, norm_paths(network), self.roles, epochs, self.blocks)


@lru_cache(maxsize=256)
def _outline(host: nn.Module, grafted: Grafted | None, kind: type[HostSpec], blocks: tuple[str, ...]) -> _Outline:
    roles: dict[str, Sequence[str]]
    roles = {**kind.roles, "graft": [], "adapter": [], "before": [], "after": []}
    if grafted is not None:
        roles |= grafted.roles | {"before": grafted.parts["host before"], "after": grafted.parts["host after"]}
    skeleton = host if grafted is None else grafted.network
    return _Outline(skeleton, roles | {"norm": all_norm_paths(skeleton)}, blocks)


@lru_cache(maxsize=1024)
def _plan(outline: _Outline, strategy: Keyed, epochs: int) -> Plan:
    return outline.plan(outline.skeleton, strategy.spec, epochs)


@lru_cache(maxsize=1024)
def _check(outline: _Outline, strategy: Keyed, epochs: int, optim: Keyed, backend: Backend) -> None:
    """`training.fit.check` on the skeleton."""
    plan = _plan(outline, strategy, epochs)
    require_room("the network with its donors", outline.skeleton)
    check(outline.skeleton, plan, Recipe(optim.spec, ScheduleSpec(epochs=epochs)), backend)


def _places(config: Config, data: ImageData) -> tuple[list[Site], list[Place]]:
    there, kind = sites_of(config, data), sites.BLOCK if config.donor.kind == "block" else sites.CONV
    where = [sites.resolve(there, site, config.host.name, kind) for site in config.sites]
    surgery.require_apart(where)
    host, operation = _skeleton(config, data), keyed(config.surgery)
    return where, [_place(host, site, operation, data.shape) for site in where]


def _put_together(
    config: Config,
    backend: Backend,
    data: ImageData,
    host: nn.Module,
    donor_at: Callable[[Place], nn.Module] | None,
) -> Assembled:
    """The run with the donors that `donor_at` gives; with skeletons of them for None."""
    network, grafted, checked = host, None, None
    donor_keys: tuple[str, ...] = ()
    skeleton = _skeleton(config, data)
    if not isinstance(config.donor, NoDonor):
        where, places = _places(config, data)
        donor = donor_of(config)
        donor_keys = tuple(key_of(donor, place, backend) for place in places)
        forms = tuple(donor.form(place) for place in places)
        operation = keyed(config.surgery)
        checked = grafted = _grafted_skeleton(skeleton, tuple(where), forms, operation, data.shape)
        if donor_at is not None:
            layers = [(site, donor_at(place)) for site, place in zip(where, places, strict=True)]
            grafted = surgery.graft(host, layers, config.surgery, data.shape, config.host.roles["head"], config.seed)
        network = grafted.network
    blocks = tuple(path for path, site in sites_of(config, data).items() if site.kind == sites.BLOCK)
    kind: type = type(config.host)
    outline = _outline(skeleton, checked, kind, blocks)
    strategy, epochs = keyed(config.strategy), config.schedule.epochs
    plan = _plan(outline, strategy, epochs) if donor_at is None else outline.plan(network, config.strategy, epochs)
    _check(outline, strategy, epochs, keyed(config.optim), backend)
    for epoch in config.exec.probe.epochs:
        require(
            epoch <= config.schedule.epochs,
            f"exec.probe.epochs has {epoch}, but training ends after {config.schedule.epochs} epochs",
        )
    parts = [part for name, part in axes(config).items() if name not in ("data", "seed") and part != "-"]
    known = identity(config, backend, data.fingerprint, donor_keys)
    key = label(*parts, f"seed{config.seed}", digest(known))
    return Assembled(key, known, donor_keys, (), grafted, network, plan, data, backend)


def places_of(config: Config, data: ImageData) -> list[Place]:
    """What a donor finds at each site of this run."""
    return _places(config, data)[1]


def obtain_donors(config: Config) -> list[Donor]:
    """The donors that this run takes, one for each site, made where nobody has yet, or anew where that is asked for;
    none without a donor."""
    set_threads(config)
    if config.exec.rerun:
        for key in checked(config).donor_keys:
            forget_donor(outputs_of(config), key, math.inf)
    if isinstance(config.donor, NoDonor):
        return []
    backend = backend_of(config)
    _, places = _places(config, _data(config))
    return [obtain(donor_of(config), place, backend, outputs_of(config)) for place in places]


def steps_per_epoch(config: Config, data: ImageData) -> int:
    """Of the optimizer; the last, smaller batches of an epoch are left out."""
    return len(data.train) // (config.optim.batch_size * config.optim.accumulate)


def timeline_of(config: Config, run: Assembled, curves: Curves = ()) -> dict[str, Any]:
    """The run's plan over its epochs, as plain data; phases that wait for a plateau are where `curves` had them start."""
    steps = steps_per_epoch(config, run.data)
    size = lambda name: run.network.get_parameter(name).numel()  # noqa: E731
    return timeline(run.plan, config.optim.lr, config.schedule, steps, size, curves)


def probes_of(config: Config, run: Assembled, batches: Batches) -> Probes:
    """What looks at this run's graft, or at the stages of a host without one."""
    there = sites_of(config, run.data)
    head = config.host.roles["head"]
    if run.grafted is None:
        subject = Subject([path for path, site in there.items() if site.kind == sites.STAGE] + list(head))
    else:
        grafts = run.grafted.grafts
        run.backend.lay_out(
            run.grafted.host
        )  # as `fit` will have the network, so that what is alike gives the same bits
        donors = [n for n, p in run.network.named_parameters() if surgery.under(n, run.grafted.roles["graft"])]
        subject = Subject(
            run.grafted.watched(there),
            {graft.site.path: (graft.site.path, graft.replaced[-1]) for graft in grafts},
            run.grafted.host,
            donors,
            [path for graft in grafts for path in graft.adapter_paths if path.endswith(".gate")],
            [name for name in donors if run.network.get_parameter(name).ndim == 4],
        )
    images = batches.val.first(config.exec.probe.images)
    with run.backend.arithmetic():
        return Probes(config.exec.probe, run.network, subject, images, batches.val, config.schedule.epochs)
