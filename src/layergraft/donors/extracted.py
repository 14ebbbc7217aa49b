"""Donors cut by path out of a file of weights that somebody else has trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from layergraft.config.registry import register
from layergraft.donors.controls import Control, LearnedDonor
from layergraft.errors import UserError, listing, require, unknown
from layergraft.hosts import weight_files
from layergraft.hosts.architectures import Architecture, Block, Conv, Slot, Stage, Stem

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layergraft.training.fit import Backend


@register("donor", "extracted")
@dataclass
class ExtractedDonor(LearnedDonor):
    """A convolution, a stem, a block or a stage; what a file does not say (stride, padding) is taken from the site."""

    name: str = "extracted"
    path: str = MISSING
    """The file: .safetensors, a torchvision state dict, a plain .pt, a Lightning .ckpt."""
    layer: str | None = None
    """The module path in the file; null: the site's own path, or the whole file where it holds a single layer. A stem is
    named by its convolution."""

    def source(self) -> str:
        return "extracted"  # not the file's name: the same layer out of a copy is the same donor

    def architecture(self, slot: Slot) -> Architecture:
        """Read off the tensors' names and shapes. Raises UserError where they are no layer known here."""
        return self._cut(slot)[1]

    def decides(self, slot: Slot) -> dict[str, Any]:
        fields, facts = super().decides(slot), self.facts(slot)
        fields["path"], fields["layer"] = facts["file_digest"], facts["layer"]
        if self.control is Control.none:
            del fields["seed"]  # nothing is drawn
        return fields

    def build(self, slot: Slot, backend: Backend, outputs: Path) -> tuple[nn.Module, dict[str, Any]]:
        _, architecture, tensors = self._cut(slot)
        built = architecture.build()
        built.load_state_dict(tensors)
        return built, self.facts(slot)

    def facts(self, slot: Slot) -> dict[str, Any]:
        """What matched: the layer, its tensors with their shapes, how many others the file has, the prefixes taken off."""
        file = weight_files.read(self.path)
        layer, _, tensors = self._cut(slot)
        return {
            "file": self.path,
            "file_digest": file.digest,
            "layer": layer,
            "matched": {name: list(tensor.shape) for name, tensor in tensors.items()},
            "num_others": len(file.tensors) - len(tensors),
            "stripped": list(file.stripped),
        }

    def _cut(self, slot: Slot) -> tuple[str, Architecture, dict[str, Tensor]]:
        from layergraft.hosts.blocks import on_meta

        file = weight_files.read(self.path)
        layer = self._layer(file, slot)
        where, tensors = f"donor.path={self.path}, {f'layer {layer}' if layer else 'its only layer'}", file.under(layer)
        if self.kind == Stem.kind and "conv.weight" not in tensors:
            tensors = _with_norm(where, file, layer, tensors)
        weight_files.require_finite(where, tensors)
        weights = [tensor for tensor in tensors.values() if tensor.ndim == 4]
        empty = bool(weights) and not any(weight.any() for weight in weights)
        require(not empty, f"{where} is empty: all weights of its convolutions are zero")
        architecture = infer(where, tensors, slot)
        require(self.kind in (None, architecture.kind), f"{where} is a {architecture.kind}, but donor.kind={self.kind}")
        wanted = on_meta(architecture.build).state_dict()
        return layer, architecture, weight_files.require_match(f"{where} ({architecture.kind})", tensors, wanted)

    def _layer(self, file: weight_files.Checkpoint, slot: Slot) -> str:
        modules, single = file.modules(), is_layer(file.tensors)
        if self.layer is None and single:
            return ""
        layer = slot.path if self.layer is None else self.layer
        if layer in modules:
            return layer
        if self.layer is None:
            another = f"donor.layer=PATH names another: {listing(modules)}"
            raise UserError(f"{self.path} has no {slot.path}, where the donor goes; {another}")
        require(not single, f"{self.path} holds a single layer, not {self.layer}; leave donor.layer out")
        raise unknown(f"layer of {self.path} in donor.layer:", self.layer, modules)


def _with_norm(where: str, file: weight_files.Checkpoint, layer: str, conv: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The convolution and the norm that stands beside it by torchvision's names (conv1, bn1; 0, 1)."""
    name = re.sub(r"conv(\d*)$", r"bn\1", layer)
    name = re.sub(r"(^|\.)0$", r"\g<1>1", layer) if name == layer else name
    norm = file.under(name)
    lacks = "has no norm beside it that a stem needs (bn1 beside conv1, 1 beside 0)"
    require(name != layer and "weight" in norm, f"{where} {lacks}; donor.kind=conv takes the convolution alone")
    parts = {"conv": conv, "norm": norm}
    return {f"{part}.{key}": tensor for part, under in parts.items() for key, tensor in under.items()}


def is_layer(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of one convolution, stem or block, rather than of a network."""
    return any(names <= tensors.keys() for names in ({"weight"}, {"conv.weight"}, {"conv1.weight", "conv2.weight"}))


def infer(where: str, tensors: Mapping[str, Tensor], slot: Slot) -> Architecture:
    """The form of a layer with these tensors; what they do not tell (stride, padding, groups) is the place's.
    Raises UserError where they are no convolution, stem, block or stage."""
    if "weight" in tensors:
        return _conv(where, tensors, slot)
    if "conv.weight" in tensors:
        return Stem(_conv(where, _under("conv", tensors), slot), _norm("norm", tensors, slot))
    if {"conv1.weight", "conv2.weight"} <= tensors.keys():
        return _block(tensors, slot.layer.stride, slot)
    if "0.conv1.weight" in tensors:
        number = 1 + max(int(name.split(".")[0]) for name in tensors if name.split(".")[0].isdigit())
        blocks = [_under(str(i), tensors) for i in range(number)]
        if all({"conv1.weight", "conv2.weight"} <= block.keys() for block in blocks):
            return Stage(tuple(_block(block, 1 if i else slot.layer.stride, slot) for i, block in enumerate(blocks)))
    raise UserError(f"{where} is no convolution, stem, block or stage of blocks; its tensors: {listing(tensors)}")


def _under(module: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{module}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _conv(where: str, tensors: Mapping[str, Tensor], slot: Slot) -> Conv:
    shape = tuple(tensors["weight"].shape)
    square = len(shape) == 4 and shape[2] == shape[3]
    require(square, f"{where} is no square 2-D convolution: its weight has the shape {shape}")
    site = slot.layer
    groups = site.groups if isinstance(site, Conv) and shape[1] * site.groups == site.in_channels else 1
    conv = slot.conv(shape[1] * groups, shape[0], shape[2], bias="bias" in tensors)
    return replace(conv, groups=groups)


def _norm(name: str, tensors: Mapping[str, Tensor], slot: Slot) -> str:
    """batch or group. Where a file has no statistics, only a host with group norm tells that none are missing."""
    return "group" if slot.norm == "group" and f"{name}.running_mean" not in tensors else "batch"


def _block(tensors: Mapping[str, Tensor], stride: int, slot: Slot) -> Block:
    first, second = tensors["conv1.weight"].shape, tensors["conv2.weight"].shape
    which, last = ("bottleneck", tensors["conv3.weight"].shape) if "conv3.weight" in tensors else ("basic", second)
    ins, width, outs = first[1], first[0], last[0]
    own = slot.layer.blocks[0] if isinstance(slot.layer, Stage) else slot.layer
    if "downsample.0.weight" in tensors:
        shortcut = "conv"
    elif isinstance(own, Block) and own.shortcut == "none":
        shortcut = "none"  # a file cannot tell: as the host has it
    else:
        shortcut = "identity" if (ins, stride) == (outs, 1) else "pad"
    groups = max(1, width // max(1, second[1]))
    return Block(which, ins, width, outs, stride, _norm("bn1", tensors, slot), shortcut, groups)
