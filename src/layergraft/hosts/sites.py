"""Sites: the named places in a host where a donor can go: every convolution, residual block and stage.

A relative site means the same thing in every depth: the convolutions on the main path (all but those in a skip's
downsample) are counted in the order in which they act, the first is at relative depth 0, the last at 1; blocks and
stages are counted among themselves in the same way.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from layergraft.errors import UserError, unknown

if TYPE_CHECKING:
    import torch
    from torch import nn

RELATIVE = {
    "early": (0.0, "the first convolution of the main path (conv1); the first block for donor.kind=block"),
    "middle": (0.5, "the one halfway down the main path"),
    "late": (1.0, "the last one of the main path"),
}
CONV, BLOCK, STAGE = "conv", "block", "stage"
Image = tuple[int, int, int]  # its channels, height and width


@dataclass(frozen=True)
class Site:
    """A place in a host. Shapes are measured by a dry forward."""

    path: str
    kind: str
    in_shape: Image
    out_shape: Image
    stride: int
    num_parameters: int
    depth: float | None
    """Relative, among the sites of its kind; None for the convolution of a skip."""
    norm: str | None
    """For a convolution: the module path of the norm that takes what it gives."""


def find_sites(network: nn.Module, image: Image) -> dict[str, Site]:
    """Every site of `network` by path, in the order in which they act on an image of shape `image`.

    The forward is on torch's meta device: it costs next to nothing, and `network` is left as it was.
    """
    import torch
    from torch import nn
    from torchvision.models.resnet import BasicBlock, Bottleneck

    from layergraft.hosts.norms import NORMS

    probe = shapes_only(network)
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}
    given: list[tuple[Any, str]] = []  # what each convolution gave; kept, so that no other tensor is the same object
    norms: dict[str, str] = {}

    def kind_of(module: nn.Module) -> str | None:
        if isinstance(module, nn.Conv2d):
            return CONV
        if isinstance(module, (BasicBlock, Bottleneck)):
            return BLOCK
        children = list(module.children()) if isinstance(module, nn.Sequential) else []
        return STAGE if children and all(isinstance(child, (BasicBlock, Bottleneck)) for child in children) else None

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        shapes[paths[module]] = (args[0].shape, output.shape)
        if isinstance(module, nn.Conv2d):
            given.append((output, paths[module]))

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        norms.update({conv: paths[module] for output, conv in given if output is args[0]})

    paths = {module: path for path, module in probe.named_modules()}
    kinds = {path: kind for module, path in paths.items() if (kind := kind_of(module))}
    for module, path in paths.items():
        if path in kinds:
            module.register_forward_hook(record)
        elif isinstance(module, NORMS):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        probe(torch.empty(2, *image, device="meta"))

    acting = [path for path in kinds if path in shapes]
    depths: dict[str, float] = {}
    for kind in (CONV, BLOCK, STAGE):
        there = [path for path in acting if kinds[path] == kind and "downsample" not in path.split(".")]
        depths |= {path: index / max(1, len(there) - 1) for index, path in enumerate(there)}
    found = {}
    for path in acting:
        module, (before, after) = probe.get_submodule(path), (cast(Image, tuple(shape[1:])) for shape in shapes[path])
        number = sum(parameter.numel() for parameter in module.parameters())
        stride, depth = stride_of(module), depths.get(path)
        found[path] = Site(path, kinds[path], before, after, stride, number, depth, norms.get(path))
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


def stride_of(module: nn.Module) -> int:
    """The stride of a convolution, of a block, or of all blocks of a stage together."""
    from torch import nn

    if isinstance(module, nn.Conv2d):
        return module.stride[0]
    if isinstance(module, nn.Sequential):
        return math.prod(stride_of(block) for block in module)
    return cast(int, module.stride)  # torchvision's blocks keep it


def resolve(sites: dict[str, Site], wanted: str | float, host: str, kind: str = CONV) -> Site:
    """The site that `wanted` names: a path, or early, middle, late or a depth from 0.0 to 1.0 among those of `kind`.

    `host` is its name for the message. Raises UserError where the host has no such site.
    """
    depth = RELATIVE[wanted][0] if wanted in RELATIVE else wanted
    if isinstance(depth, (int, float)):
        if not 0 <= depth <= 1:
            raise UserError(f"site={depth} is not a relative depth: those are from 0.0, the first, to 1.0, the last")
        there = [site for site in sites.values() if site.kind == kind and site.depth is not None]
        return there[round(depth * (len(there) - 1))]
    if depth not in sites:
        raise unknown(f"site in {host}:", depth, [*RELATIVE, "0.0 to 1.0", *sites])
    return sites[depth]
