"""Hosts that come with trained weights: torchvision's by name, through its own loading, or a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

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
    if state := matching(spec, network):
        network.load_state_dict(state)
    return network


def matching(spec: HostSpec, network: nn.Module) -> dict[str, Tensor] | None:
    """The state dict that gives `network` its weights; None without. `network` may be on the meta device.

    The head keeps its own initial weights where the file's is for another number of classes, or has none.
    Raises UserError for weights that do not exist, are not finite or do not match.
    """
    if spec.weights is None:
        return None
    where = f"host.weights={spec.weights}"
    tensors = dict(_file(spec).tensors)
    weight_files.require_finite(where, tensors)
    wanted = network.state_dict()
    tensors |= {name: wanted[name] for name in _new_head(spec, tensors, wanted)}
    spec.family.require_same_kind(where, tensors, wanted)
    return weight_files.require_match(f"{where} in {spec.name}", tensors, wanted)


def report(spec: HostSpec, network: nn.Module) -> str:
    """Which of the network's tensors are the file's, in a line."""
    file, wanted = _file(spec), network.state_dict()
    new = _new_head(spec, file.tensors, wanted)
    head = f"; {', '.join(new)} are new: the file's are for another number of classes, or not there" if new else ""
    return f"{len(wanted) - len(new)} of {len(wanted)} tensors from {file.path}{head}"


def _new_head(spec: HostSpec, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """The names of the head where the file's does not fit, which then keeps its own initial weights."""
    heads = [name for name in wanted if any(name.startswith(f"{path}.") for path in spec.roles["head"])]
    fits = all(name in tensors and tensors[name].shape == wanted[name].shape for name in heads)
    return [] if fits else heads


def _file(spec: HostSpec) -> weight_files.Checkpoint:
    """The file of weights, torchvision's downloaded first. Whatever lies there is read as data, never as code."""
    assert spec.weights is not None  # who asks has some
    if spec.weights_name() is None:
        return weight_files.read(spec.weights)
    import torch
    from torchvision.models import get_model_weights

    known = get_model_weights(spec.name).__members__
    if spec.weights not in known:
        what = f"weights of {spec.name} in host.weights (nor is there such a file):"
        raise unknown(what, spec.weights, dict.fromkeys(["DEFAULT", *known]))
    weights = known[spec.weights]
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    if not path.exists():
        try:
            weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except OSError as error:  # URLError is one
            raise UserError(
                f"cannot download {weights} ({getattr(error, 'reason', error)}); without a network, put {path.name} into {path.parent}, or give a file by host.weights=FILE"
            ) from None
    return weight_files.read(str(path))
