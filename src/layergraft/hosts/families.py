"""Families of networks, one adapter each: what is a residual block of the family, what lies on its skip, where the stem and
the head are, how its files of weights name things. Everything else asks here and knows no class of a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from layergraft.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layergraft.hosts.layer_architectures import Slot


class BlockArchitecture:
    """A residual block of a family, without weights. Subclasses are frozen dataclasses of plain values (str, int, float, bool)
    with these fields: they go into a donor's provenance and build the block again."""

    kind: ClassVar[str] = "block"
    family: ClassVar[str] = ""
    """Name of the family; `register_family` sets it."""
    in_channels: int
    out_channels: int
    stride: int
    shortcut: str = "identity"
    """What the skip is; other blocks of the host are given the same where sizes change."""

    @classmethod
    def of(cls, module: nn.Module) -> BlockArchitecture | None:
        """The architecture of `module`; None if it is no block of this family."""
        raise NotImplementedError

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], stride: int, slot: Slot) -> BlockArchitecture | None:
        """The architecture of a block with these tensors, whose names and shapes alone are known; None if it cannot be told.
        Tensors that match the block at `slot` are recognised without."""
        return None

    def build(self) -> nn.Module:
        """The block with initial weights from torch's own generator: (N, `in_channels`, H, W) to (N, `out_channels`, H /
        `stride`, W / `stride`)."""
        raise NotImplementedError

    def shape(self) -> str:
        """The rest of the description in a few words."""
        return f"{self.family} block"

    def resized(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> BlockArchitecture:
        """The same kind of block with other sizes. Raises UserError if there is none."""
        raise UserError(f"blocks of the family {self.family} keep their channels and their stride")


@dataclass(frozen=True)
class Family:
    """What is known of a family of networks; a kind of host names it as its `family`."""

    name: str
    """In the provenance of donors."""
    block: type[BlockArchitecture]
    """Recognises and describes the family's residual blocks."""
    stem: tuple[str, ...]
    """Module paths of the role `stem`."""
    head: tuple[str, ...]
    """Module paths of the classifier, the role `head`."""
    skip: str | None = None
    """Name within a block of the module on its skip: convolutions in it are off the main path and have no relative depth."""
    stages: tuple[str, ...] = ()
    """Module paths of the stages, first to last; empty: the rows of blocks (`nn.Sequential`)."""

    def norm_beside(self, conv: str) -> str | None:
        """The path of the norm that takes what the convolution at `conv` gives, by the names in a file of weights."""
        beside = re.sub(r"(^|\.)0$", r"\g<1>1", conv)
        return None if beside == conv else beside

    def own_names(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`tensors` of a file of weights by the names that the family has for them."""
        return tensors

    def require_same_kind(self, where: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
        """Raise UserError, with the key that cures it, if `tensors` are of another member of the family than `wanted`. What
        differs in other ways is listed tensor by tensor afterwards."""


FAMILIES: dict[str, Family] = {}
AnyFamily = TypeVar("AnyFamily", bound=Family)


def register_family(family: AnyFamily) -> AnyFamily:
    """Make a family known, so that its blocks are recognised wherever they are; returns it."""
    FAMILIES[family.name] = family
    family.block.family = family.name
    return family


def block_of(module: nn.Module) -> BlockArchitecture | None:
    """The architecture of a residual block of any family; None for another module."""
    found = (family.block.of(module) for family in FAMILIES.values())
    return next((block for block in found if block is not None), None)
