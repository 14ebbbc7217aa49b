"""Hosts that come with trained weights: torchvision's by name, through its own loading, or a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layergraft.errors import UserError, unknown
from layergraft.hosts import weight_files

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layergraft.config.schema import HostSpec


def fingerprint(spec: HostSpec) -> str | None:
    """The hash of the content of `spec.weights`; None without."""
    return None if spec.weights is None else _file(spec).digest


def pretrained(spec: HostSpec, image: tuple[int, int, int], num_classes: int, seed: int) -> nn.Module:
    """`spec.build`, then its `weights` put in, if it has any. Raises UserError as `matching` does."""
    network: nn.Module = spec.build(image, num_classes, seed)
    if state := matching(spec, network, head_fits(spec, network)):
        network.load_state_dict(state)
    return network


def matching(spec: HostSpec, network: nn.Module, keep_head: bool) -> dict[str, Tensor] | None:
    """The state dict that gives `network` its weights; None without. `network` may be on the meta device.

    The head keeps its own initial weights, unless the file's is to be kept. Raises UserError for weights that do not exist,
    are not finite or do not match.
    """
    if spec.weights is None:
        return None
    where = f"host.weights={spec.weights}"
    tensors = _tensors(spec)
    weight_files.require_finite(where, tensors)
    wanted = network.state_dict()
    if not keep_head:
        tensors |= {name: wanted[name] for name in head_names(spec, wanted)}
    spec.family.require_same_kind(where, tensors, wanted)
    return weight_files.require_match(f"{where} in {spec.name}", tensors, wanted)


def head_fits(spec: HostSpec, network: nn.Module) -> bool:
    """Whether the classifier of the weights has the shape of that of `network`; true without weights."""
    if spec.weights is None:
        return True
    tensors, wanted = _tensors(spec), network.state_dict()
    return all(name in tensors and tensors[name].shape == wanted[name].shape for name in head_names(spec, wanted))


def transforms(spec: HostSpec) -> Any:
    """Torchvision's own transforms for its weights (`mean`, `std`, `crop_size`); None for other weights."""
    name = spec.weights_name()
    return None if name is None else _named(spec)[name].transforms()


def class_names(spec: HostSpec) -> tuple[str, ...] | None:
    """The classes that the weights tell apart; None where that is not known."""
    name = spec.weights_name()
    return None if name is None else tuple(_named(spec)[name].meta["categories"])


def report(spec: HostSpec, network: nn.Module, keep_head: bool) -> str:
    """Which of the network's tensors are the file's, in a line."""
    file, wanted = _file(spec), network.state_dict()
    new = [] if keep_head else head_names(spec, wanted)
    head = f"; {', '.join(new)} are new" if new else ""
    return f"{len(wanted) - len(new)} of {len(wanted)} tensors from {file.path}{head}"


def head_names(spec: HostSpec, state: Mapping[str, Tensor]) -> list[str]:
    """Which tensors of a state dict are the classifier's."""
    return [name for name in state if any(name.startswith(f"{path}.") for path in spec.roles["head"])]


def _tensors(spec: HostSpec) -> dict[str, Tensor]:
    """Those of the file, by the names that the host has for them."""
    return dict(spec.family.own_names(_file(spec).tensors))


def _named(spec: HostSpec) -> Any:
    """Torchvision's weights of this network, by name. Raises UserError where it has none of that name."""
    from torchvision.models import get_model_weights

    known = get_model_weights(spec.name).__members__
    if spec.weights not in known:
        what = f"weights of {spec.name} in host.weights (nor is there such a file):"
        raise unknown(what, str(spec.weights), dict.fromkeys(["DEFAULT", *known]))
    return known


def _file(spec: HostSpec) -> weight_files.Checkpoint:
    """The file of weights, torchvision's downloaded first. Whatever lies there is read as data, never as code."""
    assert spec.weights is not None  # who asks has some
    if spec.weights_name() is None:
        return weight_files.read(spec.weights)
    import torch

    weights = _named(spec)[spec.weights]
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    if not path.exists():
        try:
            weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except OSError as error:  # URLError is one
            raise UserError(
                f"cannot download {weights} ({getattr(error, 'reason', error)}); without a network, put {path.name} into {path.parent}, or give a file by host.weights=FILE"
            ) from None
    return weight_files.read(str(path))
