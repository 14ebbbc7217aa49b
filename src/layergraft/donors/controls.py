"""Controls made of a donor: its weights with one thing after another taken away.

Each acts on every convolution of the donor, norms and biases stay. What a control keeps of a filter (an output
channel's weights): `moments` its mean and deviation (Raghu et al. 2019, Transfusion, by tensor there), `permuted` its
values, `covariance` the mean and covariance of all k x k kernels of the layer (Trockman et al. 2023).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layergraft.seeds import stream
from layergraft.specs import Control

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


def controlled(layer: nn.Module, control: Control, seed: int) -> nn.Module:
    """`layer`, whose convolutions now hold what `control` leaves of them."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(stream(seed, "donor", "control"))
    with torch.no_grad():
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(CONTROLS[control](module.weight, generator))
    return layer


def moments(w_OIHW: Tensor, generator: Generator) -> Tensor:
    """Gaussian noise (O, I, H, W) with the mean and deviation of each filter, exactly."""
    import torch

    flat = w_OIHW.flatten(1)
    noise = torch.randn(flat.shape, generator=generator)
    if flat.shape[1] > 1:
        noise = (noise - noise.mean(1, keepdim=True)) / noise.std(
            1, keepdim=True
        )  # the moments exactly, not on average
        noise = noise * flat.std(1, keepdim=True)
    return (noise * (flat.shape[1] > 1) + flat.mean(1, keepdim=True)).view_as(w_OIHW)


def permuted(w_OIHW: Tensor, generator: Generator) -> Tensor:
    """The weights of each filter (I, H, W), shuffled: its values stay, their places do not."""
    import torch

    flat = w_OIHW.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(1)
    return flat.gather(1, order).view_as(w_OIHW)


def covariance(w_OIHW: Tensor, generator: Generator) -> Tensor:
    """Kernels (H, W) drawn from the Gaussian with the mean and covariance of all of the layer's.

    Source: Trockman, Willmott & Kolter, Understanding the Covariance Structure of Convolutional Filters, 2023.
    """
    import torch

    kernels = w_OIHW.flatten(2).flatten(0, 1).double()  # a row for each k x k kernel
    mean = kernels.mean(0)
    spread = torch.cov(kernels.T, correction=0).reshape(kernels.shape[1], kernels.shape[1])
    values, vectors = torch.linalg.eigh(spread)
    root = vectors * values.clamp_min(0).sqrt()
    noise = torch.randn(kernels.shape, generator=generator, dtype=torch.float64)
    drawn: Tensor = mean + noise @ root.T
    return drawn.to(w_OIHW.dtype).view_as(w_OIHW)


CONTROLS = {Control.moments: moments, Control.permuted: permuted, Control.covariance: covariance}
