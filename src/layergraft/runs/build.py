"""A run put together from its plan: donors made or read, surgery done, calibrated; ready to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layergraft import surgery
from layergraft.config.schema import Config
from layergraft.data.batches import Batches
from layergraft.data.image_data import ImageData
from layergraft.data.normalization import Normalization, Normalize, chosen
from layergraft.donors.donor_cache import Donor, discard_donor, get_or_create
from layergraft.hosts import weights
from layergraft.networks import pretrained_hosts
from layergraft.runs.plan import RunPlan, images_of
from layergraft.seeds import derive_seed
from layergraft.surgery import Grafted
from layergraft.training.evaluation import evaluate


@dataclass(frozen=True)
class BuiltRun:
    """A run ready to train."""

    plan: RunPlan
    images: ImageData
    donors: tuple[Donor, ...]
    """A donor for each site."""
    host: dict[str, Any]
    """Where the host's weights are from, as in the record."""
    normalization: Normalization
    """Of the run's images."""
    grafted: Grafted
    """Without a donor: the host as it is, and no grafts."""

    @property
    def config(self) -> Config:
        return self.plan.config

    @property
    def network(self) -> nn.Module:
        return self.grafted.network


def build(plan: RunPlan) -> BuiltRun:
    """As `RunPlan.build`."""
    config, backend, images = plan.config, plan.backend, images_of(plan.config)
    host, of_host = pretrained_hosts.build(
        config.host, images.facts, config.seed_of("init"), plan.keeps_head, backend, plan.outputs
    )
    normalization = chosen(config.data.normalize, images.train, pretrained_hosts.normalization(config.host))
    donors = _donors(plan)
    layers = [(graft.site, donor.layer) for graft, donor in zip(plan.grafts, donors, strict=True)]
    grafted = surgery.graft(
        host, layers, plan.operation, images.shape, config.host.roles["head"], config.seed_of("init")
    )
    if donors:
        device = torch.device(backend.device)
        grafted.host.to(device)
        grafted.network.to(device)
        with backend.arithmetic():
            grafted = surgery.calibrated(
                grafted, calibration_images(config, images, normalization)[0].to(device), plan.operation
            )
        grafted.host.cpu()
        grafted.network.cpu()
    return BuiltRun(plan, images, donors, of_host, normalization, grafted)


def get_host(plan: RunPlan) -> dict[str, Any]:
    """Pretrain the host of this run, where nobody has yet; what is known of it."""
    set_threads(plan.config)
    return pretrained_hosts.pretrain(plan.config.host, plan.backend, plan.outputs)[1]


def host_is_kept(plan: RunPlan) -> bool:
    """Whether the pretrained host of this run is there already."""
    assert plan.host_key is not None  # who asks has one
    return pretrained_hosts.is_kept(plan.outputs, plan.host_key)


def get_donors(plan: RunPlan) -> tuple[Donor, ...]:
    """The donors that this run takes, one for each site, made where nobody has yet."""
    set_threads(plan.config)
    return _donors(plan)


def discard_made(plan: RunPlan, older_than: float = math.inf) -> None:
    """Remove the host and the donors of this run that were made before `older_than`: they are made anew when they are needed."""
    if plan.host_key is not None:
        pretrained_hosts.discard_host(plan.outputs, plan.host_key, older_than)
    for key in plan.donor_keys:
        discard_donor(plan.outputs, key, older_than)


def _donors(plan: RunPlan) -> tuple[Donor, ...]:
    return tuple(get_or_create(plan.donor, graft.slot, plan.backend, plan.outputs) for graft in plan.grafts)


def set_threads(config: Config) -> None:
    """Give torch the run's threads, where it says how many."""
    if config.exec.threads is not None:
        torch.set_num_threads(config.exec.threads)


def head_note(plan: RunPlan) -> str | None:
    """A line for people where the classifier of weights is kept whose classes are not known: whether they are the data's shows in
    the accuracy of the host as it is, before any training. None elsewhere."""
    host, data = plan.config.host, plan.config.data.name
    if host.weights is None or not plan.keeps_head or weights.class_names(host) is not None:
        return None
    images, backend = images_of(plan.config), plan.backend
    network, _ = pretrained_hosts.build(host, images.facts, plan.config.seed_of("init"), True, backend, plan.outputs)
    by = chosen(plan.config.data.normalize, images.train, None)
    batches = Batches.of(images, plan.batches, 0, backend.device, by)
    with backend.arithmetic():
        found = evaluate(network.to(backend.device), batches.val, images.task)
    kept = f"the classifier of {host.weights} is kept: it has as many classes as {data}, whose names it does not tell"
    return (
        f"{kept}. As it is, the host has {found['acc']:.1f}% of the validation images right (host.head=new replaces it)"
    )


def calibration_images(
    config: Config, data: ImageData, normalization: Normalization
) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to `surgery.images` training images, normalised, as the seed draws them, and their labels."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "calibration"))
    index = torch.randperm(len(data.train), generator=generator)[: config.surgery.images].numpy()
    chosen = data.train.take(index)
    normalize = Normalize(normalization, torch.device("cpu"))
    return normalize(torch.from_numpy(chosen.x_NCHW)), torch.from_numpy(chosen.y_N)
