"""The residual networks for CIFAR: 6n + 2 layers in three stages of n basic blocks.

Source: He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2, with skips of option A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layergraft.config.registry import register
from layergraft.config.specs import HostSpec
from layergraft.errors import require, unknown

if TYPE_CHECKING:
    from torch import nn

BLOCKS = {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet56": 9, "resnet110": 18}


@register("host", "cifar_resnet")
@dataclass
class CifarResNet(HostSpec):
    """At width 16 the networks of the paper: 0.27, 0.46, 0.85 and 1.7 million parameters from resnet20 on."""

    width: int = 16
    """Channels of the stem and of layer1; layer2 and layer3 have 2 and 4 times as many."""

    def check(self, at: str) -> None:
        super().check(at)
        if self.name not in BLOCKS:
            raise unknown("cifar_resnet host", self.name, BLOCKS)
        require(
            self.weights_name() is None,
            f"{at}.weights is '{self.weights}': torchvision has no weights for {self.name}, and there is no such file",
        )

    def build(self, image: tuple[int, int, int], num_classes: int, seed: int) -> nn.Module:
        """As `TorchvisionResNet.build`."""
        from layergraft.hosts import networks

        return networks.seeded(lambda: networks.CifarResNet(self, image[0], num_classes, BLOCKS[self.name]), seed)
