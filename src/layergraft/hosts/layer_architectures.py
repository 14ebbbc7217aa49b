"""Architectures: layers without weights, what a donor is and what a site takes: a convolution, a stem, a residual block of any
family, a stage. They are plain data: a donor's is written into its provenance, and builds the layer again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from layergraft.errors import UserError, require, unknown
from layergraft.hosts.families import FAMILIES, BlockArchitecture, block_of

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_FAMILY = "resnet"  # of blocks that are written without one


@dataclass(frozen=True)
class Conv:
    """A convolution: kernel, stride and padding in pixels, square."""

    kind: ClassVar[str] = "conv"
    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    padding: int
    bias: bool = False
    groups: int = 1

    @classmethod
    def of(cls, module: nn.Module) -> Conv | None:
        """None for what is no convolution of torch's, or one that these fields do not describe: not square, dilated, with
        padding other than a number of zeros."""
        from torch import nn

        if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
            return None
        square = [len(set(pair)) == 1 for pair in (module.kernel_size, module.stride, module.padding)]
        if not all(square) or module.dilation != (1, 1):
            return None
        sizes = module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0], module.padding[0]
        return cls(*sizes, module.bias is not None, module.groups)

    def build(self) -> nn.Conv2d:
        """A convolution of this form with torchvision's initial weights (normal, fan out) from torch's own generator."""
        from torch import nn

        layer = nn.Conv2d(**vars(self))
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return layer

    def shape(self) -> str:
        return f"kernel {self.kernel_size} x {self.kernel_size}, padding {self.padding}{', bias' if self.bias else ''}{f', {self.groups} groups' if self.groups > 1 else ''}"


@dataclass(frozen=True)
class Stem:
    """Convolution, norm, ReLU."""

    kind: ClassVar[str] = "stem"
    conv: Conv
    norm: str
    in_channels = property(lambda self: self.conv.in_channels)
    out_channels = property(lambda self: self.conv.out_channels)
    stride = property(lambda self: self.conv.stride)

    def build(self) -> nn.Sequential:
        from collections import OrderedDict

        from torch import nn

        from layergraft.hosts.resnet_blocks import NORM_LAYERS

        norm = NORM_LAYERS[self.norm](self.out_channels)
        return nn.Sequential(OrderedDict(conv=self.conv.build(), norm=norm, relu=nn.ReLU()))

    def shape(self) -> str:
        return f"{self.conv.shape()}, {self.norm} norm, ReLU"


@dataclass(frozen=True)
class Stage:
    """Blocks in a row."""

    kind: ClassVar[str] = "stage"
    blocks: tuple[BlockArchitecture, ...]
    in_channels = property(lambda self: self.blocks[0].in_channels)
    out_channels = property(lambda self: self.blocks[-1].out_channels)
    stride = property(lambda self: math.prod(block.stride for block in self.blocks))

    def build(self) -> nn.Module:
        from torch import nn

        return nn.Sequential(*[block.build() for block in self.blocks])

    def shape(self) -> str:
        return f"{len(self.blocks)} blocks, the first a {self.blocks[0].shape()}"


Architecture = Conv | Stem | BlockArchitecture | Stage


def describe(architecture: Architecture) -> str:
    """One line: channels, stride, and the rest of the shape."""
    return f"{architecture.kind}, {architecture.in_channels} -> {architecture.out_channels} channels, stride {architecture.stride}, {architecture.shape()}"


def norm_name(module: nn.Module) -> str:
    """batch or group."""
    from torch import nn

    return "batch" if isinstance(module, nn.BatchNorm2d) else "group"


def site_architecture(module: nn.Module) -> Conv | BlockArchitecture | Stage | None:
    """The architecture of a convolution, block or stage, which is a row of blocks; None for another module."""
    from torch import nn

    if (block := block_of(module)) is not None:
        return block
    blocks = [block_of(child) for child in module.children()] if isinstance(module, nn.Sequential) else []
    known = tuple(block for block in blocks if block is not None)
    return Stage(known) if known and len(known) == len(blocks) else Conv.of(module)


def architecture_of(module: nn.Module) -> Architecture:
    """The architecture of a convolution, stem (as `Stem.build` makes it), block or stage. Raises UserError for another."""
    from torch import nn

    if (architecture := site_architecture(module)) is not None:
        return architecture
    parts = list(module) if isinstance(module, nn.Sequential) else []
    conv = Conv.of(parts[0]) if len(parts) > 1 else None
    if conv is None:
        what = "a convolution, stem (convolution, norm, ReLU), block or stage of blocks"
        raise UserError(f"a donor that is a {type(module).__name__}: it must be {what}")
    return Stem(conv, norm_name(parts[1]))


def to_json(architecture: Architecture) -> dict[str, Any]:
    if isinstance(architecture, Stage):
        blocks = [_block_to_json(block) for block in architecture.blocks]
        return {"kind": architecture.kind, "blocks": blocks}
    if isinstance(architecture, BlockArchitecture):
        return {"kind": architecture.kind, **_block_to_json(architecture)}
    return {"kind": architecture.kind, **asdict(architecture)}


def from_json(fields: dict[str, Any]) -> Architecture:
    """The inverse of `to_json`. Raises UserError if a package with the family is not installed."""
    match fields:
        case {"conv": conv, "norm": norm}:
            return Stem(Conv(**conv), norm)
        case {"blocks": blocks}:
            return Stage(tuple(map(_block_from_json, blocks)))
    kind, plain = fields["kind"], {name: value for name, value in fields.items() if name != "kind"}
    return Conv(**plain) if kind == Conv.kind else _block_from_json(plain)


def _block_to_json(block: BlockArchitecture) -> dict[str, Any]:
    fields: dict[str, Any] = asdict(cast(Any, block))  # every subclass is a dataclass
    return fields if block.family == DEFAULT_FAMILY else {**fields, "family": block.family}


def _block_from_json(fields: dict[str, Any]) -> BlockArchitecture:
    name = fields.get("family", DEFAULT_FAMILY)
    if name not in FAMILIES:
        raise unknown("family of networks", name, FAMILIES)
    return FAMILIES[name].block(**{field: value for field, value in fields.items() if field != "family"})


@dataclass(frozen=True)
class Slot:
    """What a donor finds where it goes."""

    path: str
    layer: Architecture
    """Of the host's own layer; for an insert, a convolution of kernel 3 and stride 1 that keeps the channels."""
    image: tuple[int, int, int]
    """At the network's start: channels, height, width."""
    norm: str = "batch"
    """What the host normalises with: batch or group."""
    shortcut: str = "conv"
    """What the host's blocks have where sizes change: conv, pad or none."""
    maps: tuple[int, int] | None = None
    """Height and width of the maps that the donor is given; None: those of `image`."""

    def read_norm(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        """batch or group. Where a file has no statistics, only a host with group norm tells that none are missing."""
        return "group" if self.norm == "group" and f"{name}.running_mean" not in tensors else "batch"

    def conv(self, in_channels: int | None = None, out_channels: int | None = None, kernel_size: int | None = None,
             stride: int | None = None, padding: int | None = None, bias: bool = False) -> Conv:  # fmt: skip
        """A convolution for this place; what is None is as the place has it, the padding such that images keep their size."""
        own = self.layer.conv if isinstance(self.layer, Stem) else self.layer
        if not isinstance(own, Conv):
            own = Conv(own.in_channels, own.out_channels, 3, own.stride, 1)
        given = dict(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride)
        conv = replace(own, bias=bias, **{name: size for name, size in given.items() if size is not None})
        padding = matched_padding(conv.kernel_size, own)[0] if padding is None else padding
        same = (conv.in_channels, conv.out_channels) == (own.in_channels, own.out_channels)
        return replace(conv, padding=padding, groups=own.groups if same else 1)

    def block(
        self, in_channels: int | None = None, out_channels: int | None = None, stride: int | None = None
    ) -> BlockArchitecture:
        """A block for this place: as the site's blocks are, or a basic one, with the host's norm and skips."""
        own = self.layer.blocks[0] if isinstance(self.layer, Stage) else self.layer
        ins = self.layer.in_channels if in_channels is None else in_channels
        outs = self.layer.out_channels if out_channels is None else out_channels
        step = self.layer.stride if stride is None else stride
        if isinstance(own, BlockArchitecture) and (ins, outs, step) == (own.in_channels, own.out_channels, own.stride):
            return own
        from layergraft.hosts.resnets import Block

        model = own if isinstance(own, BlockArchitecture) else Block("basic", ins, outs, outs, step, self.norm)
        changes = "conv" if self.shortcut == "pad" and outs < ins else self.shortcut
        shortcut = "identity" if (ins, step) == (outs, 1) and changes != "none" else changes
        return model.resized(ins, outs, step, shortcut)


def matched_padding(kernel_size: int, own: Conv) -> tuple[int, int]:
    """The pixels of padding (top and left, bottom and right) by which a kernel of this size gives as many as `own` does.
    Raises UserError where it would take less than none."""
    total = 2 * own.padding + kernel_size - own.kernel_size
    site = f"the site's {own.kernel_size} x {own.kernel_size} with padding {own.padding}"
    require(total >= 0, f"a kernel of {kernel_size} x {kernel_size} gives more pixels than {site}, even without any")
    return total // 2, total - total // 2
