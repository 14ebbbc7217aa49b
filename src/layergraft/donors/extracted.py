"""Donors cut by path out of a file of weights that somebody else has trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from layergraft.config.registry import register
from layergraft.donors.controls import Control, LearnedDonor
from layergraft.errors import UserError, listing, require, unknown
from layergraft.hosts import weight_files
from layergraft.hosts.families import FAMILIES, BlockArchitecture
from layergraft.hosts.layer_architectures import Architecture, Conv, Slot, Stage, Stem

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layergraft.training.backend import Backend


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
        from layergraft.hosts.resnet_blocks import on_meta

        file = weight_files.read(self.path)
        layer = self._layer(file, slot)
        given = Path(self.path).parent.name == "given"  # a module, which the Python interface wrote there
        named = "the module given as the donor" if given else f"donor.path={self.path}"
        where, tensors = f"{named}, {f'layer {layer}' if layer else 'its only layer'}", file.under(layer)
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
        modules, single = file.modules(), is_layer(file.tensors, slot)
        if self.layer is None and single:
            return ""
        layer = slot.path if self.layer is None else self.layer
        if layer in modules:
            return layer
        if self.layer is None:
            another = f"donor.layer=PATH names another: {listing(modules)}"
            other = f"has no {slot.path}, where the donor goes, and is no layer like the {slot.layer.kind} there"
            raise UserError(f"{self.path} {other}; {another}")
        require(not single, f"{self.path} holds a single layer, not {self.layer}; leave donor.layer out")
        raise unknown(f"layer of {self.path} in donor.layer:", self.layer, modules)


def _with_norm(where: str, file: weight_files.Checkpoint, layer: str, conv: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The convolution and the norm that stands beside it by the names of some family (conv1, bn1; 0, 1)."""
    beside = (family.norm_beside(layer) for family in FAMILIES.values())
    norm = next((found for name in beside if name and "weight" in (found := file.under(name))), None)
    lacks = "has no norm beside it that a stem needs (bn1 beside conv1, 1 beside 0)"
    if norm is None:
        raise UserError(f"{where} {lacks}; donor.kind=conv takes the convolution alone")
    parts = {"conv": conv, "norm": norm}
    return {f"{part}.{key}": tensor for part, under in parts.items() for key, tensor in under.items()}


def is_layer(tensors: Mapping[str, Tensor], slot: Slot) -> bool:
    """Whether these are the tensors of one convolution, stem or block, rather than of a network."""
    single = any(names <= tensors.keys() for names in ({"weight"}, {"conv.weight"}))
    return single or _is_as_the_site(tensors, slot) or _block(tensors, 1, slot) is not None


def infer(where: str, tensors: Mapping[str, Tensor], slot: Slot) -> Architecture:
    """The architecture of a layer with these tensors; what they do not tell (stride, padding, groups) is the site's.
    Raises UserError where they are no convolution, stem, block or stage."""
    if _is_as_the_site(tensors, slot):
        return slot.layer
    if "weight" in tensors:
        return _conv(where, tensors, slot)
    if "conv.weight" in tensors:
        return Stem(_conv(where, _under("conv", tensors), slot), slot.read_norm("norm", tensors))
    if (block := _block(tensors, slot.layer.stride, slot)) is not None:
        return block
    tops = {name.split(".")[0] for name in tensors}
    row = [_under(str(i), tensors) for i in range(len(tops))]
    found = [_block(part, 1 if i else slot.layer.stride, slot) for i, part in enumerate(row) if part]
    blocks = tuple(block for block in found if block is not None)
    if blocks and len(blocks) == len(tops):
        return Stage(blocks)
    raise UserError(f"{where} is no convolution, stem, block or stage of blocks; its tensors: {listing(tensors)}")


def _is_as_the_site(tensors: Mapping[str, Tensor], slot: Slot) -> bool:
    """Whether these are the tensors of a block or stage like the site's own, of whatever family."""
    from layergraft.hosts.resnet_blocks import on_meta

    if not isinstance(slot.layer, (BlockArchitecture, Stage)):
        return False
    wanted = on_meta(slot.layer.build).state_dict()
    names = {name for name in wanted if not name.endswith("num_batches_tracked")}  # old files have none
    same = names == {name for name in tensors if not name.endswith("num_batches_tracked")}
    return same and all(tensors[name].shape == wanted[name].shape for name in names)


def _block(tensors: Mapping[str, Tensor], stride: int, slot: Slot) -> BlockArchitecture | None:
    """A block of the first family that can tell it by its tensors."""
    found = (family.block.read(tensors, stride, slot) for family in FAMILIES.values())
    return next((block for block in found if block is not None), None)


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
