"""How a donor whose channels are others than the site's is made to fit: its weights resized, or 1 x 1 convolutions around it."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import cast

import torch
from torch import Tensor, nn

from layergraft.config.schema import CHANNEL_MATCHING
from layergraft.errors import UserError
from layergraft.hosts.families import BlockArchitecture
from layergraft.hosts.layer_architectures import (
    Architecture,
    Conv,
    Slot,
    Stage,
    Stem,
    architecture_of,
    describe,
    matched_padding,
)


@dataclasses.dataclass(frozen=True)
class MatchedDonor:
    """A donor whose channels match the site's, with what was put around it and what was done to it."""

    donor: nn.Module
    pad: nn.ZeroPad2d | None
    """In front of a kernel of even size where the site's is odd, or the reverse: a pixel more below and to the right."""
    before: nn.Conv2d | None
    after: nn.Conv2d | None
    did: list[str]


def match_channels(donor: nn.Module, slot: Slot, method: str) -> MatchedDonor:
    """Make `donor`, which is changed in place, match the slot by `method`. Raises UserError, with the methods that would work."""
    architecture = architecture_of(donor)
    try:
        return _matched(donor, slot, method)
    except UserError as error:
        others = []
        for name in CHANNEL_MATCHING:
            with suppress(UserError), torch.device("meta"):
                _matched(architecture.build(), slot, name)
                others.append(name)
        advice = f"surgery.channel_matching={' or '.join(others)}" if others else "no surgery.channel_matching"
        architectures = f"The donor is a {describe(architecture)}; the site takes a {describe(slot.layer)}"
        raise UserError(
            f"the donor does not fit {slot.path}: {error}. {architectures}. {advice} would fit it"
        ) from None


def _matched(donor: nn.Module, slot: Slot, method: str) -> MatchedDonor:
    did: list[str] = []
    pad = _match_stride(donor, slot, did)
    architecture, site = architecture_of(donor), slot.layer
    ins, outs = (architecture.in_channels, site.in_channels), (architecture.out_channels, site.out_channels)
    if method == "project":
        if site.stride % architecture.stride:
            raise UserError(f"its stride of {architecture.stride} is more than the site's {site.stride}")
        before = nn.Conv2d(ins[1], ins[0], 1, bias=False) if ins[0] != ins[1] else None
        after = nn.Conv2d(outs[0], outs[1], 1, site.stride // architecture.stride, bias=False)
        return MatchedDonor(donor, pad, before, after, did)
    if architecture.stride != site.stride:
        raise UserError(f"its stride is {architecture.stride}, the site's {site.stride}")
    if ins[0] == ins[1] and outs[0] == outs[1]:
        return MatchedDonor(donor, pad, None, None, did)
    if method == "strict":
        raise UserError(f"it takes {ins[0]} channels and gives {outs[0]}, where {ins[1]} and {outs[1]} are needed")
    did.append(f"channels {ins[0]} -> {outs[0]} made {ins[1]} -> {outs[1]} by {method}")
    return MatchedDonor(resized(donor, architecture, ins[1], outs[1], method), pad, None, None, did)


def _match_stride(donor: nn.Module, slot: Slot, did: list[str]) -> nn.ZeroPad2d | None:
    """Give a convolution or stem the site's stride, and the padding that keeps the site's size: neither is a weight.

    The padding comes back as a module where it is not the same on all sides.
    """
    conv = _convolution(donor)
    if conv is None:
        return None
    own = slot.conv()
    low, high = matched_padding(conv.kernel_size[0], own)
    pad = nn.ZeroPad2d((low, high, low, high)) if low != high else None
    if pad is not None:
        did.append(f"padding {conv.padding[0]} made {low} above and left, {high} below and right")
        conv.padding = (0, 0)
    for name, value in (("stride", own.stride), ("padding", low if pad is None else 0)):
        if getattr(conv, name) != (value, value):
            did.append(f"{name} {getattr(conv, name)[0]} made {value}")
            setattr(conv, name, (value, value))
    return pad


def _convolution(donor: nn.Module) -> nn.Conv2d | None:
    """That of a donor which is a convolution or a stem; None for a block or stage."""
    if not isinstance(architecture_of(donor), (Conv, Stem)):
        return None
    return cast(nn.Conv2d, donor[0] if isinstance(donor, nn.Sequential) else donor)


def resized(
    donor: nn.Module, architecture: Architecture, in_channels: int, out_channels: int, method: str
) -> nn.Module:
    """`donor` with other numbers of channels.

    slice takes the first channels, weights as they are. The others keep the response's scale. tile repeats channels in
    turn; the weights over an input channel are shared out among its copies, so that equal inputs give the donor's
    response (Chen et al. 2016, Net2Net). sum and average act on input channels alone, which all get the same weights:
    sum the donor's sum over its channels (equal channels give the donor's response), average the same, each filter then
    scaled back to its norm (uncorrelated channels give a response of the same variance), but for filters whose channels
    cancel out to less than a thousandth, where only rounding is left to scale. Raises UserError
    where the method is not for this donor.
    """
    ins, outs = (architecture.in_channels, in_channels), (architecture.out_channels, out_channels)
    if method in ("sum", "average"):
        if not isinstance(architecture, (Conv, Stem)) or outs[0] != outs[1]:
            raise UserError(f"{method} is for convolutions and stems that differ in their input channels alone")
    elif any((new > old) if method == "slice" else (new < old) for old, new in (ins, outs)):
        way, other = ("fewer", "more") if method == "slice" else ("more", "fewer")
        raise UserError(f"{method} makes channels {way}, not {other}")
    if isinstance(architecture, Stage) or getattr(getattr(architecture, "conv", architecture), "groups", 1) > 1:
        raise UserError(f"{method} is not for stages, nor for convolutions in groups")
    target = _target(architecture, in_channels, out_channels)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in target.build().state_dict().items()}
    state = {name: _resize(tensor, shapes[name], method) for name, tensor in donor.state_dict().items()}
    with torch.device(next(donor.parameters()).device), torch.random.fork_rng(devices=[]):
        new = target.build()
    new.load_state_dict(state, assign=True)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(donor.get_parameter(name).requires_grad)
    return new.train(donor.training)


def _target(architecture: Conv | Stem | BlockArchitecture, ins: int, outs: int) -> Conv | Stem | BlockArchitecture:
    if isinstance(architecture, Conv):
        return dataclasses.replace(architecture, in_channels=ins, out_channels=outs)
    if isinstance(architecture, Stem):
        return dataclasses.replace(
            architecture, conv=dataclasses.replace(architecture.conv, in_channels=ins, out_channels=outs)
        )
    return architecture.resized(ins, outs, architecture.stride, architecture.shortcut)


def _resize(tensor: Tensor, shape: torch.Size, method: str) -> Tensor:
    """One tensor of a state dict to `shape`: output channels first, then the input channels of a convolution."""
    if tensor.ndim == 0:
        return tensor
    tensor = _take(tensor, 0, shape[0])
    if tensor.ndim == 1 or tensor.shape[1] == shape[1]:
        return tensor.contiguous()
    old, new = tensor.shape[1], shape[1]
    if method == "slice":
        return _take(tensor, 1, new).contiguous()
    if method == "tile":
        copies = torch.tensor([new // old + (channel % old < new % old) for channel in range(new)])
        return _take(tensor, 1, new) / copies.to(tensor)[None, :, None, None]
    grey = tensor.sum(1, keepdim=True).expand(-1, new, -1, -1) / new
    if method == "average":
        norm, left = tensor.flatten(1).norm(dim=1), grey.flatten(1).norm(dim=1)
        grey = grey * torch.where(left < 1e-3 * norm, 1.0, norm / left.clamp_min(1e-30))[:, None, None, None]
    return grey.contiguous()


def _take(tensor: Tensor, dim: int, number: int) -> Tensor:
    """The first `number` of dimension `dim`, beginning again where there are fewer."""
    index = torch.arange(number, device=tensor.device) % tensor.shape[dim]
    return tensor.index_select(dim, index)


def dropped_bias(donor: nn.Module) -> Tensor | None:
    """The bias of a convolution or stem, which loses it; None where there was none."""
    conv = _convolution(donor)
    if conv is None or conv.bias is None:
        return None
    bias = conv.bias.detach()
    conv.bias = None
    return bias
