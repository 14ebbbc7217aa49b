"""Hosts that are a module of the user's own, given in Python: `layergraft.Host(module, ...)`.

The module stays in this process, a copy of it as it was given, found again by its digest: of its tensors, its classes, their
code and their values. Two networks that differ in any of these never share the key of a run.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore

from layergraft.config.registry import register
from layergraft.config.schema import HostSpec
from layergraft.errors import UserError, require, unknown
from layergraft.hosts.families import BlockArchitecture, Family, register_family
from layergraft.store.files import digest

if TYPE_CHECKING:
    from torch import Tensor, nn

GIVEN: dict[str, nn.Module] = {}  # digest -> network
BLOCKS: dict[str, nn.Module] = {}  # signature -> a block of a given network
ARCHITECTURES: dict[tuple[str, str], ModuleBlock] = {}  # digest and path -> what was measured of a block
TAG = "layergraft_block"  # attribute of a block: its architecture, which copies of it have too
LIBRARIES = ("torch", "torchvision", "builtins")  # whose code is told by their classes' names
PROBED = 64  # pixels a side of what the stride of a block is measured on
ABSENT = "a module that this process does not have: call layergraft.Host(module, ...) with it here first"


@dataclass(frozen=True)
class ModuleBlock(BlockArchitecture):
    """A block of a given network. Built, it is a copy of that block with what torch draws anew by `reset_parameters`; parameters
    of modules without it have the values that they were given with."""

    signature: str
    """Of its classes, their code, values and shapes."""
    in_channels: int
    out_channels: int
    stride: int

    @classmethod
    def of(cls, module: nn.Module) -> ModuleBlock | None:
        return getattr(module, TAG, None)

    def build(self) -> nn.Module:
        found = BLOCKS.get(self.signature)
        require(found is not None, f"the donor is a block of {ABSENT}")
        built = copy.deepcopy(found)
        assert built is not None
        for part in built.modules():
            draw: Any = getattr(part, "reset_parameters", None)
            if draw is not None:
                draw()
        return built

    def shape(self) -> str:
        found = BLOCKS.get(self.signature)
        return f"{type(found).__name__} of the host" if found is not None else f"block {self.signature}"


MODULE = register_family(Family("module", ModuleBlock, stem=(), head=()))


@register("host", "module")
@dataclass
class ModuleHost(HostSpec):
    """A module that was given in Python; the command line cannot choose it. Its weights are those that it was given with, whatever
    the seed."""

    name: str = "module"
    network: str = ""
    """Its digest."""
    blocks: list[str] = field(default_factory=list)
    """Module paths of its residual blocks, besides those of a family that is known."""
    stages: list[str] = field(default_factory=list)
    """Module paths of its stages; empty: its rows of blocks."""
    stem: list[str] = field(default_factory=list)
    """Module paths of its stem."""
    classifier: list[str] = field(default_factory=list)
    """Module paths of its classifier, the role `head`."""

    @property
    def family(self) -> Family:
        return replace(MODULE, stem=tuple(self.stem), head=tuple(self.classifier), stages=tuple(self.stages))

    @property
    def comes_with_weights(self) -> bool:
        return True

    def check(self, at: str) -> None:
        super().check(at)
        require(
            self.head != "new",
            f"{at}.head is new, but a module has the classifier that it was given with; replace it there",
        )
        require(
            bool(self.network), f"{at}=module needs a module, which only Python can give: layergraft.Host(module, ...)"
        )
        require(
            self.weights is None, f"{at}.weights is '{self.weights}', but a module has its own; load them into it first"
        )

    def build(self, image: tuple[int, int, int], num_classes: int, seed: int) -> nn.Module:
        """A copy of the module. Raises UserError if it is not in this process, cannot take such images, or gives another
        number of logits."""
        given = GIVEN.get(self.network)
        require(given is not None, f"the host {self.name} is {ABSENT}")
        network = copy.deepcopy(given)
        assert network is not None
        _require_fits(network, image, num_classes)
        for path in self.blocks:
            if (self.network, path) not in ARCHITECTURES:
                ARCHITECTURES[self.network, path] = _measured(network, path, image)
            setattr(network.get_submodule(path), TAG, ARCHITECTURES[self.network, path])
            BLOCKS.setdefault(ARCHITECTURES[self.network, path].signature, copy.deepcopy(network.get_submodule(path)))
        return network


# Composed as any choice is, without a file in conf/: help does not offer what the command line cannot have.
ConfigStore.instance().store(group="host", name="module", node=ModuleHost, provider="layergraft")


def give(module: nn.Module, **paths: str | Sequence[str]) -> dict[str, Any]:
    """Keep a copy of `module` in this process; the values of `ModuleHost` for it. `paths`: blocks, stages, stem, head, each a module
    path or several. Raises UserError for a path that is not there and for what cannot be trained and stored."""
    from torch import nn

    require(isinstance(module, nn.Module), f"Host takes a name or a module of torch, not a {type(module).__name__}")
    known = [path for path, _ in module.named_modules() if path]
    named = {key: [value] if isinstance(value, str) else list(value) for key, value in paths.items()}
    for key, values in named.items():
        for path in values:
            if path not in known:
                raise unknown(f"module in Host({type(module).__name__}), {key}:", path, known)
    linear = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    guess = linear[-1] if linear else "PATH"
    require(
        bool(named.get("head")),
        f"Host({type(module).__name__}) needs the module path of its classifier: head='{guess}'?",
    )
    for number, (name, parameter) in enumerate(every := list(module.named_parameters(remove_duplicate=False))):
        twin = next((other for other, before in every[:number] if before is parameter), None)
        require(
            twin is None,
            f"Host({type(module).__name__}): {twin} and {name} are one tensor; tied weights cannot be stored",
        )
        require(not parameter.is_meta, f"Host({type(module).__name__}): {name} is on the meta device and has no values")
    network = copy.deepcopy(module).cpu().train()
    tensors = {name: _bytes(tensor) for name, tensor in _tensors(network)}
    key = digest([structure(network), {name: digest(content) for name, content in tensors.items()}])
    GIVEN.setdefault(key, network)
    return {"name": type(module).__name__, "network": key, "classifier": named.pop("head"), **named}


def structure(module: nn.Module) -> list[Any]:
    """All of a module but its tensors, as plain data: paths, classes, the code of those that are not torch's, values."""
    from torch import Tensor, nn

    plumbing = {*vars(nn.Module()), TAG}
    found = []
    for path, part in module.named_modules():
        seen: set[CodeType] = set()
        own = [kind for kind in type(part).__mro__ if not _is_of_library(kind)]
        code = [_code(member, seen) for kind in own for _, member in sorted(vars(kind).items())]
        values = {
            name: digest(_bytes(value)) if isinstance(value, Tensor) else _code(value, seen) or _plain(value)
            for name, value in vars(part).items()
            if name not in plumbing
        }
        kind = type(part)
        found.append([path, f"{kind.__module__}.{kind.__qualname__}", [each for each in code if each], values])
    return found


def signature(block: nn.Module) -> str:
    """The digest of a block's structure, of its tensors' shapes, and of the values that a fresh copy of it keeps."""
    kept = {name: digest(_bytes(tensor)) for path, part in block.named_modules() if not hasattr(part, "reset_parameters")
            for name, tensor in _tensors(part, path)}  # fmt: skip
    return digest([structure(block), [[name, list(tensor.shape)] for name, tensor in _tensors(block)], kept])


def _tensors(module: nn.Module, only: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name; with `only`, a module path, those of the module itself."""
    recurse = only is None
    prefix = only or ""
    yield from module.named_parameters(prefix, recurse)
    yield from module.named_buffers(prefix, recurse)


def _bytes(tensor: Tensor) -> bytes:
    import torch

    shape = f"{tensor.dtype} {list(tensor.shape)} ".encode()
    if tensor.is_meta:
        return shape
    return shape + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _is_of_library(value: Any) -> bool:
    return (getattr(value, "__module__", None) or "").split(".")[0] in LIBRARIES


def _code(value: Any, seen: set[CodeType]) -> list[Any]:
    """What a function, method or property does, with the functions and constants of its module that it names; [] for another
    value. `seen` is code that needs no second look."""
    function = getattr(value, "__func__", getattr(value, "fget", value))
    if not isinstance(function, FunctionType):
        return []
    code = function.__code__
    if _is_of_library(function) or code in seen:
        return [function.__qualname__]
    seen.add(code)
    around = [
        closed.cell_contents for closed in function.__closure__ or () if not isinstance(closed.cell_contents, type)
    ]
    named = [function.__globals__[name] for name in _names(code) if name in function.__globals__]
    constants = [value for value in named if isinstance(value, (int, float, str, tuple))]
    inner = [_code(other, seen) for other in (*named, *around)]
    values = [*constants, *around, function.__defaults__, function.__kwdefaults__]
    return [function.__qualname__, _of(code), list(map(_plain, values)), [each for each in inner if each]]


def _names(code: CodeType) -> list[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return [*code.co_names, *(name for each in inner for name in _names(each))]


def _of(code: CodeType) -> list[Any]:
    """The instructions, the names and the constants; no line numbers, no file."""
    constants = [_of(c) if isinstance(c, CodeType) else _plain(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _plain(value: Any) -> str:
    """`value` in words that are the same in each process."""
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_plain, value)))}}}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _require_fits(network: nn.Module, image: tuple[int, int, int], num_classes: int) -> None:
    """Raise UserError if `network` cannot take such images, or gives another number of logits."""
    import torch

    probe, name = copy.deepcopy(network).to("meta").eval(), type(network).__name__
    what = f"images of {' x '.join(map(str, image))} (channels, height, width)"
    try:
        with torch.no_grad():
            logits: Any = probe(torch.empty(2, *image, device="meta"))
    except Exception as error:  # whatever the code of a user may raise
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise UserError(f"the host {name} cannot take {what} on torch's meta device: {why}") from error
    shape = list(getattr(logits, "shape", [])) or type(logits).__name__
    wanted = f"the data have {num_classes} classes"
    is_row = isinstance(shape, list) and len(shape) == 2 and shape[0] == 2
    require(is_row, f"the host {name} gives {shape} for 2 {what}, where logits [2, {num_classes}] are needed")
    require(shape[1] == num_classes, f"the host {name} gives {shape[1]} logits an image, but {wanted}")


def _measured(network: nn.Module, path: str, image: tuple[int, int, int]) -> ModuleBlock:
    """The channels of a block in its network, and its stride. Raises UserError if it is not one tensor to one tensor."""
    import torch

    seen: list[tuple[Any, Any]] = []

    def look(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append((args, output))

    probe = copy.deepcopy(network).to("meta").eval()
    block = probe.get_submodule(path)
    with torch.no_grad():
        with block.register_forward_hook(look):
            probe(torch.empty(2, *image, device="meta"))
        tensors = [*seen[0][0], seen[0][1]] if len(seen) == 1 else []
        are_images = len(tensors) == 2 and all(isinstance(t, torch.Tensor) and t.ndim == 4 for t in tensors)
        once = "runs once in a forward, takes one tensor (N, C, H, W) and gives one"
        require(are_images, f"the host {type(network).__name__}: {path} is no block, which {once}")
        given, made = tensors
        with_size: tuple[int, int] = (given.shape[2], made.shape[2])
        try:  # on larger images, where the stride can be told from the border
            with_size = (PROBED, block(torch.empty(2, given.shape[1], PROBED, PROBED, device="meta")).shape[2])
        except RuntimeError:
            pass  # it takes one size alone
    return ModuleBlock(
        signature(network.get_submodule(path)),
        given.shape[1],
        made.shape[1],
        max(1, round(with_size[0] / with_size[1])),
    )
