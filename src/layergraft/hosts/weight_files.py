"""Files of weights that others have made, read as data: safetensors, or torch's own with `weights_only=True`.

A pickle that wants to run code is refused, never run. Nothing here builds a network.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layergraft.errors import UserError, listing
from layergraft.store.files import digest, require_regular, require_unpacked

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = re.compile(r"(module|model|net|network|_orig_mod)\.")  # what wrappers put in front of every name
TYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
NESTED = ("state_dict", "model_state_dict", "model", "net")  # where training scripts keep the state dict


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file by name, wrappers' prefixes taken off."""

    path: str
    tensors: Mapping[str, Tensor]
    stripped: tuple[str, ...]
    """The prefixes that were taken off."""
    digest: str
    """Of the file's content."""

    def under(self, layer: str) -> dict[str, Tensor]:
        """The tensors of one module, named within it; of all where `layer` is empty."""
        start = f"{layer}." if layer else ""
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def modules(self) -> list[str]:
        """Paths that have tensors of their own or below them, in the file's order."""
        parts = (name.split(".")[:-1] for name in self.tensors)
        return list(dict.fromkeys(path for names in parts for path in accumulate(names, "{}.{}".format)))


def read(path: str) -> Checkpoint:
    """The checkpoint at `path`: .safetensors, else whatever torch can load without running code.

    Raises UserError for a file that is missing, empty, cut short, not a checkpoint, or that would run code.
    """
    file = Path(path)
    if not path:
        raise UserError("the path is empty; a file of weights is needed")
    require_regular(path, "a file of weights")
    if not file.is_file():
        near = sorted(str(other) for other in file.parent.glob(f"*{file.suffix}")) if file.parent.is_dir() else []
        others = f"beside it: {listing(near)}" if near else "none like it is there"
        raise UserError(f"there is no file {path}; {others}")
    stamp = file.stat()
    return _read(path, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=4)
def _read(path: str, modified: int, size: int) -> Checkpoint:
    if not size:
        raise UserError(f"{path} is empty")
    loaded: Any = _safetensors(path) if path.endswith(".safetensors") else _torch(path)
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a state dict (a dictionary of tensors)")
    loaded = next((loaded[name] for name in NESTED if isinstance(loaded.get(name), Mapping)), loaded)
    import torch

    tensors = {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors; its keys: {listing(loaded) or 'none'}")
    _require_plain(path, tensors)
    named, stripped = _strip(path, tensors)
    return Checkpoint(path, named, stripped, digest(Path(path).read_bytes()))


def _require_plain(path: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError for a tensor whose values the file does not hold one by one: sparse, packed, without storage, or
    one number that stands for a whole tensor, which would take all memory once it is copied."""
    import torch

    for name, tensor in tensors.items():
        dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not dense or tensor.is_nested or str(tensor.dtype).removeprefix("torch.") not in TYPES:
            raise UserError(f"{path}: {name} is no plain tensor ({tensor.layout}, {tensor.device}, {tensor.dtype})")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} says it is {tuple(tensor.shape)}, but the file holds less of it")


def _safetensors(path: str) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, AttributeError, KeyError, ValueError) as error:  # others: types that torch does not have
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None


def _torch(path: str) -> Any:
    import pickle

    import torch

    require_unpacked(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are no checkpoints: the error says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make torch raise nearly anything
        said = str(error)
        wants = any(sign in said for sign in ("GLOBAL", "Unsupported global", "Unsupported class"))
        if wants and isinstance(error, pickle.UnpicklingError):
            raise UserError(
                f"{path} is refused: reading it would run code ({_cause(said)}); save the state dict alone, or as safetensors"
            ) from None
        raise UserError(f"{path} is no checkpoint, or is cut short{_detail(said)}") from None


def _cause(message: str) -> str:
    """The line of torch's long message that names what the pickle asks for."""
    line = next(line for line in message.splitlines() if "Unsupported" in line or "GLOBAL" in line)
    return line.strip().removeprefix("WeightsUnpickler error: ").split(" was not an allowed")[0]


def _detail(message: str) -> str:
    """torch's own words where they say something; never its advice to load the file in the unsafe way."""
    text = message.partition("WeightsUnpickler error:")[2] or message
    first = text.strip().split("\n")[0].split(". ")[0].split("; ")[0]
    return f" ({first})" if " " in first and "eights only" not in first else ""


def _strip(path: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """`tensors` without wrappers' prefixes; a name that is there with and without one is an error."""
    named: dict[str, Tensor] = {}
    stripped: dict[str, None] = {}
    for full, tensor in tensors.items():
        name = full
        while found := PREFIX.match(name):
            stripped.setdefault(found[0])
            name = name[found.end() :]
        if name in named:
            raise UserError(f"{path} has '{name}' twice once {listing(stripped)} is taken off its names")
        named[name] = tensor
    return named, tuple(stripped)


def require_finite(where: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError where a tensor is empty, or holds NaN, Inf or values that float32 cannot hold."""
    for name, tensor in tensors.items():
        if not tensor.numel():
            raise UserError(f"{where}: {name} has the shape {tuple(tensor.shape)}: it is empty")
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            bad = int((~tensor.float().isfinite()).sum())
            raise UserError(f"{where}: {name} has {bad} values of {tensor.numel()} that are NaN or Inf")


def require_match(where: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` made ready for a module whose state dict is `wanted`, in its order and of its types.

    A batch norm's count of batches may be missing (old files have none). Raises UserError that lists what is missing,
    what is there beside, and what has another shape.
    """
    import torch

    def needed(name: str) -> bool:
        return not name.endswith("num_batches_tracked")

    both = [(name, tensors[name], tensor) for name, tensor in wanted.items() if name in tensors]
    wrong: dict[str, list[str]] = {
        "missing": [name for name in wanted if name not in tensors and needed(name)],
        "not part of it": [name for name in tensors if name not in wanted and needed(name)],
        "of another shape": [
            f"{name} {tuple(x.shape)} where {tuple(y.shape)} is needed" for name, x, y in both if x.shape != y.shape
        ],
        "not floating-point numbers": [
            f"{name} is {x.dtype}" for name, x, y in both if y.is_floating_point() and not x.is_floating_point()
        ],
    }
    said = "; ".join(f"{what}: {listing(names)}" for what, names in wrong.items() if names)
    if said:
        raise UserError(f"{where} does not match: {said}")
    none = torch.zeros((), dtype=torch.int64)
    return {name: tensors[name].to(x.dtype) if name in tensors else none.clone() for name, x in wanted.items()}
