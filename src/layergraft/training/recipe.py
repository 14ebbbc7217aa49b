"""How to train, less the plan, and whether that can be done. Without Lightning: what only looks at a run does not import it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from layergraft.config.training_schema import OptimSpec, RegularizerSpec, ScheduleSpec
from layergraft.errors import require
from layergraft.strategies.phases import TrainingPlan
from layergraft.training.backend import Backend
from layergraft.training.optimizers import make


@dataclass(frozen=True)
class Recipe:
    """How to train, less the plan."""

    optim: OptimSpec
    schedule: ScheduleSpec
    regularizer: RegularizerSpec = field(default_factory=RegularizerSpec)


def check(network: nn.Module, plan: TrainingPlan, recipe: Recipe, backend: Backend) -> None:
    """Raise UserError for an optimizer that cannot be, or a network that the devices cannot share.

    `network` may lie on the meta device.
    """
    make(network, plan, recipe.optim)
    size, devices = recipe.optim.batch_size, backend.devices
    require(size % devices == 0, f"optim.batch_size is {size}; exec.devices={devices} cannot share it evenly")
    if backend.device == "cuda":
        there = torch.cuda.device_count()
        require(devices <= there, f"exec.devices is {devices}, but torch sees {there} CUDA devices here")
    elif devices > 1:
        moving = any(phase.batch_norm_statistics & set(plan.norms.values()) for phase in plan.phases)
        needs = f"exec.devices={devices} on a CPU: batch norm over several processes needs CUDA"
        require(not moving, f"{needs}; host.norm=group does without")
