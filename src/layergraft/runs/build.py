"""A run put together from its plan: donors made or read, surgery done, calibrated; ready to train."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from layergraft import surgery
from layergraft.config.schema import Config
from layergraft.data.batches import Normalize
from layergraft.data.image_data import ImageData
from layergraft.donors.donor_cache import Donor, discard_donor, get_or_create
from layergraft.hosts import weights
from layergraft.runs.plan import RunPlan, images_of
from layergraft.seeds import derive_seed
from layergraft.surgery import Grafted


@dataclass(frozen=True)
class BuiltRun:
    """A run ready to train."""

    plan: RunPlan
    images: ImageData
    donors: tuple[Donor, ...]
    """A donor for each site."""
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
    host = weights.pretrained(config.host, images.shape, images.num_classes, config.seed)
    donors = _donors(plan)
    layers = [(graft.site, donor.layer) for graft, donor in zip(plan.grafts, donors, strict=True)]
    grafted = surgery.graft(host, layers, plan.operation, images.shape, config.host.roles["head"], config.seed)
    if donors:
        device = torch.device(backend.device)
        grafted.host.to(device)
        grafted.network.to(device)
        with backend.arithmetic():
            grafted = surgery.calibrated(grafted, calibration_images(config, images)[0].to(device), plan.operation)
        grafted.host.cpu()
        grafted.network.cpu()
    return BuiltRun(plan, images, donors, grafted)


def get_donors(plan: RunPlan) -> tuple[Donor, ...]:
    """The donors that this run takes, one for each site, made where nobody has yet, or anew where that is asked for."""
    set_threads(plan.config)
    if plan.config.exec.rerun:
        for key in plan.donor_keys:
            discard_donor(plan.outputs, key, math.inf)
    return _donors(plan)


def _donors(plan: RunPlan) -> tuple[Donor, ...]:
    return tuple(get_or_create(plan.donor, graft.slot, plan.backend, plan.outputs) for graft in plan.grafts)


def set_threads(config: Config) -> None:
    """Give torch the run's threads, where it says how many."""
    if config.exec.threads is not None:
        torch.set_num_threads(config.exec.threads)


def calibration_images(config: Config, data: ImageData) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to `surgery.images` training images, normalised, as the seed draws them, and their labels."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "calibration"))
    index = torch.randperm(len(data.train), generator=generator)[: config.surgery.images].numpy()
    chosen = data.train.take(index)
    normalize = Normalize(data.train, torch.device("cpu"))
    return normalize(torch.from_numpy(chosen.x_NCHW)), torch.from_numpy(chosen.y_N)
