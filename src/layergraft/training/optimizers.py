"""Optimizers: any of torch.optim, over all parameters from step 0, in groups named as in the plan."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from layergraft.config.training_schema import OptimSpec
from layergraft.errors import UserError, require, unknown
from layergraft.strategies.phases import TrainingPlan

# They need a closure that is called again and again, or sparse gradients, or nothing but matrices.
UNFIT = ("LBFGS", "SparseAdam", "Muon")
FUSED_ON_CUDA = ("adam", "adamw", "sgd")  # torch.optim.Adagrad(fused=True) refuses CUDA tensors up to torch 2.11
CLASSES = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and name not in ("Optimizer", *UNFIT)
}


def class_of(spec: OptimSpec) -> type[torch.optim.Optimizer]:
    """The class of torch.optim. Raises UserError for a name that is none, or options that it does not take."""
    name = spec.name.lower()
    if name not in CLASSES:
        raise unknown("optimizer in optim.name:", spec.name, CLASSES)
    taken = inspect.signature(CLASSES[name]).parameters
    own = ("params", "lr", "weight_decay", *(["momentum"] if name == "sgd" else []))
    for option, value in spec.options.items():
        require(option not in own, f"optim.options.{option}: give optim.{option} itself")
        if option not in taken:
            raise unknown(f"option of {name} in optim.options:", option, [key for key in taken if key not in own])
        is_of_type = not isinstance(taken[option].default, bool) or isinstance(value, bool)
        require(is_of_type, f"optim.options.{option} is {value}; it must be true or false")
    decays = spec.weight_decay == 0 or "weight_decay" in taken
    require(decays, f"optim.weight_decay is {spec.weight_decay}, but {name} has none")
    return CLASSES[name]


def groups_of(network: nn.Module, plan: TrainingPlan, spec: OptimSpec) -> list[dict[str, Any]]:
    """The optimizer's groups: one for each group of the plan and weight decay in it, in the plan's order; with learning
    rates by tensor (`plan.tensor_lr`) one for each tensor. `group` is the plan's, `tensors` are the parameters' names."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for group, names in plan.groups.items():
        for name in names:
            parameter = network.get_parameter(name)
            decay = plan.weight_decay.get(group, spec.weight_decay)
            if parameter.ndim < 2 and not spec.decay_1d or group in plan.l2_sp and is_anchored(parameter):
                decay = 0.0
            label = name if plan.tensor_lr != "none" else f"{group}, weight decay {decay:g}"
            new = {"params": [], "name": label, "group": group, "tensors": [], "weight_decay": decay}
            entry = found.setdefault((group, label), new)
            entry["params"].append(parameter)
            entry["tensors"].append(name)
    return list(found.values())


def is_anchored(parameter: nn.Parameter) -> bool:
    """L2-SP is about weights: biases and norm parameters have ordinary weight decay."""
    return parameter.ndim > 1


def make(network: nn.Module, plan: TrainingPlan, spec: OptimSpec) -> torch.optim.Optimizer:
    """Raises UserError for values that the class refuses."""
    cls: Callable[..., torch.optim.Optimizer] = class_of(spec)
    groups = groups_of(network, plan, spec)
    taken = inspect.signature(cls).parameters
    options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in spec.options.items()}
    if "weight_decay" not in taken:
        require(not any(group["weight_decay"] for group in groups), f"{spec.name} has no weight decay, and the strategy sets one")  # fmt: skip
        for group in groups:
            del group["weight_decay"]
    if spec.name.lower() == "sgd":
        options["momentum"] = spec.momentum
    own_way = {"fused", "foreach", "differentiable"} & options.keys()  # they exclude one another
    device = groups[0]["params"][0].device.type
    has_kernel = device == "cpu" or (device == "cuda" and spec.name.lower() in FUSED_ON_CUDA)
    if "fused" in taken and not own_way and has_kernel:
        options["fused"] = True
    try:
        return cls(groups, lr=spec.lr, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"optim: {spec.name} refuses its options: {error}") from None


def initial_state(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: nn.Parameter
) -> dict[str, Any]:
    """What an optimizer that has state before its first step (Adagrad) gives `parameter` there."""
    taken = inspect.signature(type(optimizer)).parameters
    own = {name: value for name, value in group.items() if name in taken and name != "params"}
    return dict(type(optimizer)([parameter], **own).state[parameter])


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Put the state of each parameter in its order in memory: a checkpoint may be of another (`exec.channels_last`), and
    torch's fused kernels on a CPU go through both as they lie, without a look."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            of_its_shape = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if of_its_shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()
