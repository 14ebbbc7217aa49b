"""Hosts that come with trained weights: torchvision's by name, through its own loading, or a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layergraft import checkpoints
from layergraft.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layergraft.specs import HostSpec


def fingerprint(spec: HostSpec) -> str | None:
    """What names the content of `spec.weights`: the file torchvision loads, or the hash of one's own; None without."""
    if spec.weights is None:
        return None
    if spec.weights_name() is None:
        return checkpoints.read(spec.weights).digest
    return _file_name(_torchvision(spec))


def pretrained(spec: HostSpec, image: tuple[int, int, int], num_classes: int, seed: int) -> nn.Module:
    """`spec.build`, then its `weights` put in, if it has any. Raises UserError as `matching` does."""
    network = spec.build(image, num_classes, seed)
    state = matching(spec, network)
    if state:
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
    if spec.weights_name() is None:
        file = checkpoints.read(spec.weights)
        tensors = dict(file.tensors)
        checkpoints.require_finite(where, tensors)
    else:
        tensors = dict(_downloaded(_torchvision(spec)))
    wanted = network.state_dict()
    heads = [name for name in wanted if name.split(".")[0] in spec.roles["head"]]
    if any(name not in tensors or tensors[name].shape != wanted[name].shape for name in heads):
        for name in heads:
            tensors[name] = wanted[name]
    first = "conv1.weight"
    if first in tensors and tensors[first].ndim == 4 and tensors[first].shape[1] != wanted[first].shape[1]:
        channels = tensors[first].shape[1]
        raise UserError(
            f"{where} takes images of {channels} channels and is given {wanted[first].shape[1]}; host.in_channels={channels} repeats or averages the images' channels"
        )
    return checkpoints.require_match(f"{where} in {spec.name}", tensors, wanted)


def _torchvision(spec: HostSpec):
    from torchvision.models import get_model_weights

    known = get_model_weights(spec.name)
    try:
        return known[spec.weights]
    except KeyError:
        names = ["DEFAULT", *(entry.name for entry in known)]
        raise unknown(
            f"weights of {spec.name} in host.weights (nor is there such a file):", spec.weights, names
        ) from None


def _file_name(weights) -> str:
    return weights.url.rsplit("/", 1)[-1]


def _downloaded(weights) -> dict[str, Tensor]:
    from urllib.error import URLError

    import torch

    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise UserError(
            f"cannot download {weights} ({getattr(error, 'reason', error)}); without a network, put {_file_name(weights)} into {folder}, or give a file by host.weights=FILE"
        ) from None
