"""Gradients by tensor, measured beside training: what learning rates by tensor are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from layergraft.metrics.tasks import Task
from layergraft.training.evaluation import Batch, eagerly

NUM_BATCHES = 5


def measured(
    network: nn.Module,
    batches: Iterable[Batch],
    parameters: Mapping[str, nn.Parameter],
    task: Task = Task.multi_class,
    class_weights: Tensor | None = None,
) -> list[dict[str, Tensor]]:
    """For each batch the gradient of the mean loss by parameter, 0 where it has none.

    The network is run in the mode that it is in; batch norms' statistics are not moved. Over several processes the
    gradients are those of all batches together.
    """
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    found = []
    for x_NCHW, y_N in batches:
        with eagerly(network):
            loss = task.loss(network(x_NCHW).float(), y_N, class_weights=class_weights)
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for grad in grads:
                torch.distributed.all_reduce(grad)
                grad /= torch.distributed.get_world_size()
        found.append(dict(zip(parameters, grads, strict=True)))
    with torch.no_grad():
        for buffer, value in before:
            buffer.copy_(value)
    return found


def relative_norms(grads: Sequence[Mapping[str, Tensor]], parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Parameter -> mean over the batches of ||g|| / ||theta||; infinity for a tensor that is 0 and has a gradient.

    Source: Lee et al., Surgical Fine-Tuning, 2023, section 4 (RGN).
    """
    ratios = [torch.stack([g[name].norm() for g in grads]).mean() / parameters[name].norm() for name in parameters]
    # 0 / 0: a tensor of zeros without a gradient
    return dict(zip(parameters, torch.stack(ratios).nan_to_num(0.0, posinf=math.inf).tolist(), strict=True))


def rgn_weights(grads: Sequence[Mapping[str, Tensor]], parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Auto-RGN: relative norms over the largest, so that each tensor has a share of the learning rate.

    A single number (a gate) may be 0 or next to it, and a tensor that is 0 has no relative norm: neither is a measure for
    the others, and neither learns at more than the full rate.
    """
    norms = relative_norms(grads, parameters)
    measures = [norm for name, norm in norms.items() if parameters[name].ndim and norm != math.inf]
    largest = max(measures, default=0.0) or math.inf
    return {name: 1.0 if norm == math.inf else min(1.0, norm / largest) for name, norm in norms.items()}
