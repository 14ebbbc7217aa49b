"""Sites: the named places in a host where a donor can go.

A relative site means the same thing in every depth: the convolutions on the main path (all but those in a
skip's downsample) are counted in the order in which they act, the first is at relative depth 0, the last at 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layergraft.errors import unknown

if TYPE_CHECKING:
    from torch import nn

RELATIVE = {
    "early": (0.0, "the first convolution of the main path (conv1)"),
    "middle": (0.5, "the convolution halfway down the main path"),
    "late": (1.0, "the last convolution of the main path"),
}


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Every convolution of `network` by module path, in order."""
    from torch import nn

    return {path: module for path, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def main_path(network: nn.Module) -> list[str]:
    """The paths of the convolutions that are not in a skip connection, in the order in which they act."""
    return [path for path in convolutions(network) if "downsample" not in path.split(".")]


def resolve(network: nn.Module, site: str, host: str) -> str:
    """The module path of `site` in `network`; `host` is its name for the message.

    Raises UserError where the host has no such convolution.
    """
    if site in RELATIVE:
        paths = main_path(network)
        return paths[round(RELATIVE[site][0] * (len(paths) - 1))]
    paths = convolutions(network)
    if site not in paths:
        raise unknown(f"site in {host}:", site, [*RELATIVE, *paths])
    return site
