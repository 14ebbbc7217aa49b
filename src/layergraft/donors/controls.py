"""Controls wrap a donor: its weights with one thing after another taken away.

Each acts on every convolution of the donor, norms and biases stay. What a control keeps of a filter (an output
channel's weights): `moments` its mean and deviation (Raghu et al. 2019, Transfusion, by tensor there), `permuted` its
values, `covariance` the mean and covariance of all k x k kernels of the layer (Trockman et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layergraft.donors.donor_cache import Donor, get_or_create
from layergraft.donors.donor_kind import DonorKind
from layergraft.hosts.layer_architectures import Architecture, Slot
from layergraft.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from layergraft.data.image_data import ImageData
    from layergraft.data.normalization import Normalization
    from layergraft.data.overlap import Learned
    from layergraft.training.backend import Backend


class Control(Enum):
    """What is done to a donor's weights to see which part of them matters."""

    none = "none"
    moments = "moments"
    """Gaussian noise with the mean and deviation of each filter."""
    permuted = "permuted"
    """The weights of each filter, shuffled."""
    covariance = "covariance"
    """Filters drawn from a Gaussian with the mean and covariance of the filters' kernels."""


@dataclass
class LearnedDonor(DonorKind):
    """A donor whose weights hold something learnt, which a control can take away."""

    control: Control = Control.none
    """none, moments, permuted or covariance."""
    seed: int = 0
    """Of all that is drawn for it; the YAMLs make it the run's seed."""

    def controlled(self) -> DonorKind:
        return self if self.control is Control.none else Controlled(self)


class Controlled(DonorKind):
    """A donor whose weights have lost what a control takes away; all else is as the plain donor has it."""

    def __init__(self, spec: LearnedDonor) -> None:
        super().__init__(spec.name, spec.kind)
        self.spec, self.plain = spec, replace(spec, control=Control.none)
        self.seed, self.data = spec.seed, spec.data

    def source(self) -> str:
        return f"{self.plain.source()}.{self.spec.control.name}"

    def architecture(self, slot: Slot) -> Architecture:
        return self.plain.architecture(slot)

    def decides(self, slot: Slot) -> dict[str, Any]:
        return self.spec.decides(slot)

    def images(self, slot: Slot) -> ImageData | None:
        return self.plain.images(slot)

    def normalization(self, images: ImageData) -> Normalization:
        return self.plain.normalization(images)

    def build(self, slot: Slot, backend: Backend, outputs: Path) -> tuple[nn.Module, dict[str, Any]]:
        donor = get_or_create(self.plain, slot, backend, outputs)
        shared: dict[str, Any] = {
            name: donor.provenance[name] for name in ("network", "cost") if name in donor.provenance
        }
        return without(donor.layer, self.spec.control, self.seed), {"control_of": donor.key, **shared}

    def learned_from(self, slot: Slot) -> Learned | None:
        return self.plain.learned_from(slot)

    def saw(self, slot: Slot, donor: Donor, backend: Backend, outputs: Path) -> tuple[nn.Module, nn.Module] | None:
        """What the donor saw whose weights it has lost."""
        return self.plain.saw(slot, get_or_create(self.plain, slot, backend, outputs), backend, outputs)


def without(layer: nn.Module, control: Control, seed: int) -> nn.Module:
    """`layer`, whose convolutions now hold what `control` leaves of them."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(derive_seed(seed, "donor", "control"))
    with torch.no_grad():
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(CONTROLS[control](module.weight, generator))
    return layer


def moments(w_OIHW: Tensor, generator: Generator) -> Tensor:
    """Gaussian noise (O, I, H, W) with the mean and deviation of each filter, exactly."""
    flat = w_OIHW.flatten(1)
    noise = flat.new_empty(flat.shape).normal_(generator=generator)
    if flat.shape[1] > 1:  # the moments exactly, not on average
        noise = (noise - noise.mean(1, keepdim=True)) / noise.std(1, keepdim=True)
        noise = noise * flat.std(1, keepdim=True)
    return (noise * (flat.shape[1] > 1) + flat.mean(1, keepdim=True)).view_as(w_OIHW)


def permuted(w_OIHW: Tensor, generator: Generator) -> Tensor:
    """The weights of each filter (I, H, W), shuffled: its values stay, their places do not."""
    flat = w_OIHW.flatten(1)
    order = flat.new_empty(flat.shape).uniform_(generator=generator).argsort(1)
    return flat.gather(1, order).view_as(w_OIHW)


def covariance(w_OIHW: Tensor, generator: Generator) -> Tensor:
    """Kernels (H, W) drawn from the Gaussian with the mean and covariance of all of the layer's.
    Source: Trockman, Willmott & Kolter, Understanding the Covariance Structure of Convolutional Filters, 2023."""
    import torch

    kernels = w_OIHW.flatten(2).flatten(0, 1).double()  # a row for each k x k kernel
    values, vectors = torch.linalg.eigh(torch.atleast_2d(torch.cov(kernels.T, correction=0)))
    root = vectors * values.clamp_min(0).sqrt()
    noise = torch.randn(kernels.shape, generator=generator, dtype=torch.float64)
    drawn: Tensor = kernels.mean(0) + noise @ root.T
    return drawn.to(w_OIHW.dtype).view_as(w_OIHW)


CONTROLS = {Control.moments: moments, Control.permuted: permuted, Control.covariance: covariance}
