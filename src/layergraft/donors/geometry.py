"""The shape of a convolution: what a donor has and what a site takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Geometry:
    """Channels in and out; kernel, stride and padding in pixels, square; whether there is a bias."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    padding: int
    bias: bool

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Geometry:
        return cls(
            layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0],
            layer.bias is not None,
        )  # fmt: skip

    def fits(self, site: Geometry) -> bool:
        """Whether this layer can stand in `site` as it is; a bias is no hindrance."""
        return replace(self, bias=site.bias) == site

    def build(self) -> nn.Conv2d:
        """A convolution of this shape with torchvision's initial weights (normal, fan out) from torch's own generator."""
        from torch import nn

        layer = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, bias=self.bias
        )
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return layer

    def __str__(self) -> str:
        shape = f"{self.in_channels} -> {self.out_channels} channels, kernel {self.kernel_size} x {self.kernel_size}"
        return f"{shape}, stride {self.stride}, padding {self.padding}{', bias' if self.bias else ''}"
