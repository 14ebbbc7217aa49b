"""Forms: the shapes of layers, without weights: what a donor is, and what a place in a host takes. They are plain data:
a donor's is written into its provenance, and builds the layer again."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from layergraft.errors import UserError, require

if TYPE_CHECKING:
    from torch import nn


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
    def of(cls, layer: nn.Conv2d) -> Conv:
        padding = cast(int, layer.padding[0])  # no layer here pads by a name ("same")
        sizes = layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], padding
        return cls(*sizes, layer.bias is not None, layer.groups)

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

        from layergraft.hosts.blocks import NORM_LAYERS

        norm = NORM_LAYERS[self.norm](self.out_channels)
        return nn.Sequential(OrderedDict(conv=self.conv.build(), norm=norm, relu=nn.ReLU()))

    def shape(self) -> str:
        return f"{self.conv.shape()}, {self.norm} norm, ReLU"


@dataclass(frozen=True)
class Block:
    """A residual block of torchvision's or of CIFAR's ResNets."""

    kind: ClassVar[str] = "block"
    type: str
    """basic or bottleneck."""
    in_channels: int
    width: int
    """Channels between its convolutions; a basic block's are its out_channels."""
    out_channels: int
    stride: int
    norm: str = "batch"
    shortcut: str = "identity"
    """identity, conv (1 x 1 and norm), pad (zeros as new channels) or none (no skip)."""
    groups: int = 1

    @classmethod
    def of(cls, block: Any) -> Block:
        """The form of one of the hosts' blocks: torchvision's classes, which have no types."""
        from layergraft.hosts.blocks import PadShortcut, PlainBasicBlock, PlainBottleneck

        which, last = ("bottleneck", block.conv3) if hasattr(block, "conv3") else ("basic", block.conv2)
        shortcut = "identity"
        if isinstance(block, (PlainBasicBlock, PlainBottleneck)):
            shortcut = "none"
        elif block.downsample is not None:
            shortcut = "pad" if isinstance(block.downsample, PadShortcut) else "conv"
        first, norm = block.conv1, norm_name(block.bn1)
        channels = first.in_channels, first.out_channels, last.out_channels
        return cls(which, *channels, block.stride, norm, shortcut, block.conv2.groups)

    def build(self) -> nn.Module:
        from layergraft.hosts.blocks import BLOCKS, NORM_LAYERS, PadShortcut, conv_shortcut, initialise

        block = BLOCKS[self.type, self.shortcut != "none"]
        shortcut: nn.Module | None = None
        if self.shortcut == "conv":
            shortcut = conv_shortcut(self.in_channels, self.out_channels, self.stride, self.norm)
        elif self.shortcut == "pad":
            shortcut = PadShortcut(self.stride, self.out_channels - self.in_channels)
        planes = self.out_channels // block.expansion
        # torchvision has int(planes * (base_width / 64)) * groups channels inside; the half keeps int() from rounding down
        per_group = (self.width // self.groups + 0.5) * 64 / planes if self.type == "bottleneck" else 64
        norm = NORM_LAYERS[self.norm]
        built: nn.Module = block(self.in_channels, planes, self.stride, shortcut, self.groups, per_group, 1, norm)
        initialise(built)
        return built

    def shape(self) -> str:
        inside = f" of inner width {self.width}" if self.type == "bottleneck" else ""
        return f"{self.type} block{inside}, {self.norm} norm, skip: {self.shortcut}"


@dataclass(frozen=True)
class Stage:
    """Blocks in a row."""

    kind: ClassVar[str] = "stage"
    blocks: tuple[Block, ...]
    in_channels = property(lambda self: self.blocks[0].in_channels)
    out_channels = property(lambda self: self.blocks[-1].out_channels)
    stride = property(lambda self: math.prod(block.stride for block in self.blocks))

    def build(self) -> nn.Module:
        from torch import nn

        return nn.Sequential(*[block.build() for block in self.blocks])

    def shape(self) -> str:
        return f"{len(self.blocks)} blocks, the first a {self.blocks[0].shape()}"


Architecture = Conv | Stem | Block | Stage


def describe(architecture: Architecture) -> str:
    """One line: channels, stride, and the rest of the shape."""
    return f"{architecture.kind}, {architecture.in_channels} -> {architecture.out_channels} channels, stride {architecture.stride}, {architecture.shape()}"


def norm_name(module: nn.Module) -> str:
    """batch or group."""
    from torch import nn

    return "batch" if isinstance(module, nn.BatchNorm2d) else "group"


def architecture_of(module: nn.Module) -> Architecture:
    """The form of a convolution, stem (as `Stem.build` makes it), block or stage. Raises UserError for another."""
    from torch import nn
    from torchvision.models.resnet import BasicBlock, Bottleneck

    if isinstance(module, nn.Conv2d):
        return Conv.of(module)
    if isinstance(module, (BasicBlock, Bottleneck)):
        return Block.of(module)
    parts = list(module) if isinstance(module, nn.Sequential) else []
    if len(parts) > 1 and isinstance(parts[0], nn.Conv2d):
        return Stem(Conv.of(parts[0]), norm_name(parts[1]))
    if not parts or not all(isinstance(part, (BasicBlock, Bottleneck)) for part in parts):
        what = "a convolution, stem (convolution, norm, ReLU), block or stage of blocks"
        raise UserError(f"a donor that is a {type(module).__name__}: it must be {what}")
    return Stage(tuple(Block.of(block) for block in parts))


def to_json(architecture: Architecture) -> dict[str, Any]:
    return {"kind": architecture.kind, **asdict(architecture)}


def from_json(fields: dict[str, Any]) -> Architecture:
    match fields:
        case {"conv": conv, "norm": norm}:
            return Stem(Conv(**conv), norm)
        case {"blocks": blocks}:
            return Stage(tuple(Block(**block) for block in blocks))
    plain = Conv if fields["kind"] == Conv.kind else Block
    return plain(**{name: value for name, value in fields.items() if name != "kind"})


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
    ) -> Block:
        """A block for this place, of the type of the site's blocks or basic, with the host's norm and skips."""
        own = self.layer.blocks[0] if isinstance(self.layer, Stage) else self.layer
        ins = self.layer.in_channels if in_channels is None else in_channels
        outs = self.layer.out_channels if out_channels is None else out_channels
        step = self.layer.stride if stride is None else stride
        if isinstance(own, Block) and (ins, outs, step) == (own.in_channels, own.out_channels, own.stride):
            return own
        model = own if isinstance(own, Block) else Block("basic", ins, outs, outs, step, self.norm)
        width = outs if model.type == "basic" else max(1, model.width * outs // own.out_channels)
        changes = "conv" if self.shortcut == "pad" and outs < ins else self.shortcut
        shortcut = "identity" if (ins, step) == (outs, 1) and changes != "none" else changes
        return replace(model, in_channels=ins, width=width, out_channels=outs, stride=step, shortcut=shortcut)


def matched_padding(kernel_size: int, own: Conv) -> tuple[int, int]:
    """The pixels of padding (top and left, bottom and right) by which a kernel of this size gives as many as `own` does.
    Raises UserError where it would take less than none."""
    total = 2 * own.padding + kernel_size - own.kernel_size
    site = f"the site's {own.kernel_size} x {own.kernel_size} with padding {own.padding}"
    require(total >= 0, f"a kernel of {kernel_size} x {kernel_size} gives more pixels than {site}, even without any")
    return total // 2, total - total // 2
