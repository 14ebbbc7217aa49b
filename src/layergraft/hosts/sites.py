"""Sites: the named places in a host where a donor can go: every convolution, residual block and stage.

A relative site means the same thing in every depth: the convolutions on the main path (all but those on a block's
skip) are counted in the order in which they act, the first is at relative depth 0, the last at 1; blocks and
stages are counted among themselves in the same way.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from layergraft.errors import UserError, unknown
from layergraft.hosts.families import FAMILIES, BlockArchitecture
from layergraft.hosts.layer_architectures import Conv, Stage, site_architecture

if TYPE_CHECKING:
    import torch
    from torch import nn

RELATIVE = {
    "early": (0.0, "the first convolution of the main path (conv1); the first block for donor.kind=block"),
    "middle": (0.5, "the one halfway down the main path"),
    "late": (1.0, "the last one of the main path"),
}
CONV, BLOCK, STAGE = Conv.kind, BlockArchitecture.kind, Stage.kind
Image = tuple[int, int, int]  # its channels, height and width


@dataclass(frozen=True)
class Site:
    """A place in a host. Shapes are measured by a dry forward."""

    path: str
    architecture: Conv | BlockArchitecture | Stage
    """Of the host's own layer."""
    in_shape: Image
    out_shape: Image
    num_parameters: int
    depth: float | None
    """Relative, among the sites of its kind; None for the convolution of a skip."""
    norm: str | None
    """For a convolution: the module path of the norm that takes what it gives."""

    @property
    def kind(self) -> str:
        """conv, block or stage."""
        return self.architecture.kind

    @property
    def stride(self) -> int:
        return self.architecture.stride


def find_sites(network: nn.Module, image: Image) -> dict[str, Site]:
    """Every site of `network` by path, in the order in which they act on an image of shape `image`.

    The forward is on torch's meta device: it costs next to nothing, and `network` is left as it was.
    """
    import torch

    from layergraft.hosts.norms import NORMS

    probe = shapes_only(network)
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}
    given: list[tuple[Any, str]] = []  # what each convolution gave; kept, so that no other tensor is the same object
    norms: dict[str, str] = {}

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not args:  # its input is given by name, which surgery's modules do not take
            return
        shapes[paths[module]] = (args[0].shape, output.shape)
        if isinstance(layers[paths[module]], Conv):
            given.append((output, paths[module]))

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        norms.update({conv: paths[module] for output, conv in given if output is args[0]})

    paths = {module: path for path, module in probe.named_modules()}
    named = network.named_modules()
    layers = {path: layer for path, module in named if (layer := site_architecture(module)) is not None}
    for module, path in paths.items():
        if path in layers:
            module.register_forward_hook(record)
        elif isinstance(module, NORMS):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        probe(torch.empty(2, *image, device="meta"))

    acting = [path for path in layers if path in shapes]
    skips = {
        f"{path}.{FAMILIES[layer.family].skip}."
        for path, layer in layers.items()
        if isinstance(layer, BlockArchitecture)
    }
    on_main = [path for path in acting if not any(f"{path}.".startswith(skip) for skip in skips)]
    depths: dict[str, float] = {}
    for kind in (CONV, BLOCK, STAGE):
        there = [path for path in on_main if layers[path].kind == kind]
        depths |= {path: index / max(1, len(there) - 1) for index, path in enumerate(there)}
    found = {}
    for path in acting:
        before, after = (cast(Image, tuple(shape[1:])) for shape in shapes[path])
        number = sum(parameter.numel() for parameter in probe.get_submodule(path).parameters())
        found[path] = Site(path, layers[path], before, after, number, depths.get(path), norms.get(path))
    return found


def shapes_only(network: nn.Module) -> nn.Module:
    """A copy of `network` on torch's meta device for a forward that is about shapes and order: its norms give anything
    of their input's shape, since torch runs norms on that device in Python, slower than all else together."""
    import torch

    from layergraft.hosts.norms import NORMS

    probe = copy.deepcopy(network).to("meta").eval()
    for module in probe.modules():
        if isinstance(module, NORMS):
            setattr(module, "forward", torch.empty_like)  # noqa: B010  mypy takes no method to be set
    return probe


def resolve(sites: dict[str, Site], wanted: str | float, host: str, kind: str = CONV) -> Site:
    """The site that `wanted` names: a path, or early, middle, late or a depth from 0.0 to 1.0 among those of `kind`.

    `host` is its name for the message. Raises UserError where the host has no such site.
    """
    depth = RELATIVE[wanted][0] if wanted in RELATIVE else wanted
    if isinstance(depth, (int, float)):
        if not 0 <= depth <= 1:
            raise UserError(f"site={depth} is not a relative depth: those are from 0.0, the first, to 1.0, the last")
        there = [site for site in sites.values() if site.kind == kind and site.depth is not None]
        if not there:
            raise UserError(f"{host} has no {kind} that is known as a site, so none at site={wanted}")
        return there[round(depth * (len(there) - 1))]
    if depth not in sites:
        raise unknown(f"site in {host}:", depth, [*RELATIVE, "0.0 to 1.0", *sites])
    return sites[depth]
