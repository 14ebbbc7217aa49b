"""Donors by formula: Gabor filters, and the principal components or whitening filters of the source's patches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import MISSING

from layergraft.config.data_schema import DataSpec
from layergraft.config.registry import one_of, register
from layergraft.data.gabor import gabor_bank
from layergraft.donors.controls import Control, LearnedDonor
from layergraft.donors.random import require_conv
from layergraft.errors import require
from layergraft.hosts.layer_architectures import Conv, Slot
from layergraft.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layergraft.data.image_data import ImageData, Split
    from layergraft.data.normalization import Normalization
    from layergraft.donors.donor_cache import Donor
    from layergraft.training.backend import Backend

NUM_PATCHES = 50_000
EPSILON = 5e-4  # added to the patches' variances before whitening (Jordan 2024, 94% on CIFAR-10 in 3.29 s, section 3.2)


@register("donor", "gabor")
@dataclass
class GaborDonor(LearnedDonor):
    """A bank of Gabor filters over orientation, wavelength and phase, the same in every input channel: envelope of one
    octave, aspect 0.5, zero mean (Petkov & Kruizinga 1997), scaled to the deviation of the usual random start."""

    name: str = "gabor"
    kernel_size: int | None = None
    """Pixels a side; null: the site's."""

    def check(self, at: str) -> None:
        super().check(at)
        require_conv(self.kind, self.name)

    def source(self) -> str:
        return "gabor"

    def architecture(self, slot: Slot) -> Conv:
        conv = slot.conv(kernel_size=self.kernel_size)
        size = conv.kernel_size
        require(size >= 3, f"a Gabor filter needs a kernel of 3 x 3 or more; {slot.path} has {size}")
        return conv

    def decides(self, slot: Slot) -> dict[str, Any]:
        fields = super().decides(slot)
        if self.control is Control.none:
            del fields["seed"]  # nothing is drawn
        return fields

    def make(self, slot: Slot) -> nn.Module:
        architecture = self.architecture(slot)
        bank = gabor_bank(architecture.out_channels, architecture.kernel_size)[:, None]
        return filled(architecture, bank.expand(-1, architecture.in_channels // architecture.groups, -1, -1))


@register("donor", "patches")
@dataclass
class PatchDonor(LearnedDonor):
    """Eigenvectors of the patches that the source's training images are made of, each with its negative."""

    name: str = one_of("pca", ("pca", "whitening"), "it must be pca or whitening")
    """pca: scaled to the deviation of the usual random start; whitening: to unit variance of the source's responses."""
    data: DataSpec = MISSING
    kernel_size: int | None = None
    """Pixels a side; null: the site's."""

    def check(self, at: str) -> None:
        super().check(at)
        require_conv(self.kind, self.name)

    def source(self) -> str:
        return f"{self.name}-{self.data.name}"

    def architecture(self, slot: Slot) -> Conv:
        """Raises UserError where the patches have too few components."""
        shape = self.images(slot).shape
        conv = slot.conv(in_channels=shape[0], kernel_size=self.kernel_size)
        size, most = conv.kernel_size, 2 * shape[0] * conv.kernel_size**2
        patches = f"patches of {size} x {size} pixels in {shape[0]} channels, each with its negative"
        gives = f"{slot.path} gives {conv.out_channels} channels"
        require(conv.out_channels <= most, f"donor={self.name} has {most} filters at most ({patches}); {gives}")
        require(size <= min(shape[1:]), f"donor={self.name}: patches of {size} pixels are larger than the images")
        return conv

    def images(self, slot: Slot) -> ImageData:
        return cast("ImageData", super().images(slot))  # it has a source

    def decides(self, slot: Slot) -> dict[str, Any]:
        return super().decides(slot) | {"name": self.name}

    def saw(self, slot: Slot, donor: Donor, backend: Backend, outputs: Path) -> tuple[nn.Module, nn.Module]:
        """The filters of patches stand on the image itself."""
        return donor.layer, donor.layer

    def make(self, slot: Slot) -> nn.Module:
        import torch

        from layergraft.data.normalization import chosen

        architecture = self.architecture(slot)
        train = self.images(slot).train
        patches = patches_of(train, architecture.kernel_size, self.seed, chosen(self.data.normalize, train, None))
        values, vectors = torch.linalg.eigh(torch.atleast_2d(torch.cov(patches.T)))
        vectors = vectors.flip(1).T  # the largest first, a row each
        largest = vectors.abs().argmax(1, keepdim=True)
        vectors *= vectors.gather(1, largest).sign()  # eigenvectors have no sign of their own
        if self.name == "whitening":
            vectors /= (values.flip(0).clamp_min(0) + EPSILON).sqrt()[:, None]
        count = min(architecture.out_channels, len(vectors))
        filters = torch.cat([vectors[:count], -vectors[: architecture.out_channels - count]])
        filters = filters.reshape(-1, architecture.in_channels, architecture.kernel_size, architecture.kernel_size)
        return filled(architecture, filters, scaled=self.name == "pca")


def patches_of(split: Split, size: int, seed: int, by: Normalization) -> Tensor:
    """Patches (n, channels x size x size) at random places of the normalised training images, in float64."""
    import torch

    from layergraft.data.normalization import Normalize

    normalize = Normalize(by, torch.device("cpu"))
    _, height, width = split.shape
    generator = torch.Generator().manual_seed(derive_seed(seed, "donor", "patches"))
    ends = len(split), height - size + 1, width - size + 1  # of images, rows and columns
    drawn = [torch.randint(0, end, (NUM_PATCHES,), generator=generator) for end in ends]
    patches = []
    for which, down, right in zip(*(index.split(1000) for index in drawn), strict=True):
        x_NCHW = normalize(torch.from_numpy(split.images(which.numpy()))).double()
        windows = x_NCHW.unfold(2, size, 1).unfold(3, size, 1)  # N C top left size size
        patches.append(windows[torch.arange(len(which)), :, down, right].flatten(1))
    return torch.cat(patches)


def filled(architecture: Conv, filters: Tensor, scaled: bool = True) -> nn.Conv2d:
    """A convolution with these filters; scaled, each has the norm that the usual random start gives it on average."""
    layer = architecture.build()
    if scaled:
        norm = math.sqrt(
            2 * architecture.in_channels / architecture.groups / architecture.out_channels
        )  # He's normal, fan out
        filters = filters * (norm / filters.flatten(1).norm(dim=1).clamp_min(1e-12))[:, None, None, None]
    layer.weight.data.copy_(filters)
    return layer
