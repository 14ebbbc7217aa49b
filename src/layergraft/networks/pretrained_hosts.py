"""Hosts with trained weights: torchvision's, those of a file, or those of a network that is trained here first and kept in
`outputs/networks/<key>/`. What is known of the weights decides how images are normalised and whether the classifier is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layergraft.config.data_schema import DataSpec
from layergraft.config.registry import canonical
from layergraft.config.schema import RESULT_VERSION, HostSpec, PretrainSpec
from layergraft.data.image_data import DataFacts, ImageData
from layergraft.data.overlap import THE_HOST, Learned
from layergraft.errors import counted, require
from layergraft.hosts import weights
from layergraft.networks import network_cache
from layergraft.store.files import digest, discard, label

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layergraft.data.normalization import Normalization
    from layergraft.training.backend import Backend

AT = "host.pretrain"


def images_of(host: HostSpec) -> ImageData:
    """The images that a host is pretrained on, with the channels that it takes. Raises UserError, which says whose they are, if
    they cannot be had or cannot be trained on as the config says."""
    how = host.pretrain
    images = network_cache.training_images(AT, data_of(host), how.seed, how.optim, how.schedule)
    return images.with_channels(host.in_channels)


def learned_from(host: HostSpec, who: str = THE_HOST, at: str = AT) -> Learned | None:
    """What the network that is trained for this host learns from; None where none is."""
    if not host.is_pretrained:
        return None
    return Learned(who, f"{at}.data", data_of(host), host.pretrain.seed, images_of(host))


def data_of(host: HostSpec) -> DataSpec:
    """What a host that is pretrained is trained on."""
    assert host.pretrain.data is not None
    return host.pretrain.data


def key_of(host: HostSpec, backend: Backend) -> str | None:
    """The name of the folder of the network that is trained for this host; None where none is."""
    if not host.is_pretrained:
        return None
    seed = host.pretrain.seed
    return label("host", host.name, data_of(host).name, f"seed{seed}", digest([identity(host), backend.precision]))


def identity(host: HostSpec) -> dict[str, Any] | None:
    """All that decides the weights, but for the precision of training; None for a host that is not pretrained."""
    if not host.is_pretrained:
        return None
    pretrain, images = host.pretrain, images_of(host)
    own = {name: value for name, value in canonical(host).items() if name not in ("weights", "head", "pretrain")}
    recipe = {name: canonical(getattr(pretrain, name)) for name in ("optim", "schedule", "seed")}
    known = data_of(host).identity() | images.seeds
    content = {"identity": known, "content": images.fingerprint, "image": list(images.shape)}
    return {"version": RESULT_VERSION, "host": own, **recipe, "data": content}


def require_usable(host: HostSpec, target: ImageData) -> None:
    """Raise UserError where the network that is trained for this host cannot be one for `target`: images of other channels, or
    another shape of the network."""
    if not host.is_pretrained:
        return
    source, data = images_of(host), data_of(host)
    alike = "host.in_channels=3 repeats grey images, 1 averages colours; host.pretrain.data=none does without"
    differ = f"{AT}.data={data.name} has images of {counted(source.channels, 'channel')}, data of {counted(target.channels, 'channel')}; {alike}"
    require(source.channels == target.channels, differ)
    trained, own = (_shapes(host, images) for images in (source, target))
    odd = [name for name in own if own[name] != trained.get(name)]
    sizes = " and ".join(" x ".join(map(str, images.shape[1:])) for images in (source, target))
    differ = f"{host.name} is another network for the images of {AT}.data and of data ({sizes} pixels): {', '.join(odd[:3])} differ"
    instead = "host.stem=small or imagenet makes both alike" if "stem" in vars(host) else "choose images of one size"
    require(not odd, f"{differ}; {instead}")
    if host.head == "keep":
        fits = source.num_classes == target.num_classes and source.task is target.task
        counts = f"{AT}.data={data.name} has {source.num_classes} classes, data has {target.num_classes}"
        require(
            fits, f"host.head=keep keeps the classifier of the pretrained host, but {counts}; host.head=new replaces it"
        )


def keeps_head(host: HostSpec, target: DataFacts) -> bool:
    """Whether the host's classifier is the one that its weights were trained with."""
    if host.head != "auto":
        return host.head == "keep"
    if host.is_pretrained:
        source = images_of(host)
        return source.task is target.task and source.class_names == target.class_names
    if not host.comes_with_weights:
        return False
    names = weights.class_names(host)
    if names is not None:
        return names == target.class_names
    from layergraft.hosts.meta_device import meta_host

    return weights.head_fits(host, meta_host(host, target.shape, target.num_classes))


def normalization(host: HostSpec) -> Normalization | None:
    """By which the images were normalised that the host's weights were trained on; None where that is not known."""
    from layergraft.data.normalization import Normalization, chosen

    if host.is_pretrained:
        return chosen(data_of(host).normalize, images_of(host).train, None)
    known = weights.transforms(host)
    return None if known is None else Normalization(tuple(known.mean), tuple(known.std))


def is_kept(outputs: Path, key: str) -> bool:
    return (network_cache.folder_of(outputs, key) / network_cache.FACTS).exists()


def discard_host(outputs: Path, key: str, older_than: float) -> None:
    """Remove a network that was trained here before `older_than`: it is trained anew when it is needed."""
    discard(network_cache.folder_of(outputs, key), older_than)


def pretrain(host: HostSpec, backend: Backend, outputs: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network that is trained for this host, for the images that it is trained on; trained by the first who asks, in whichever
    process, the others wait and read it. And what is known of it: `network` (its key), `data`, `seed`, `num_train`
    (images), `metrics`. Raises RunFailed where its training diverges."""
    images, how = images_of(host), host.pretrain
    key = key_of(host, backend)
    assert key is not None  # who asks has one
    network: nn.Module = host.build(images.shape, images.num_classes, how.seed)
    known = {**(identity(host) or {}), "precision": backend.precision}
    folder = network_cache.folder_of(outputs, key)
    facts = network_cache.trained(network, how, images, folder, known, backend)
    return network, {**facts, "data": data_of(host).name, "seed": how.seed}


def build(
    host: HostSpec, target: DataFacts, seed: int, keep_head: bool, backend: Backend, outputs: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """The host for `target`, with its trained weights if it has any; what is new has the initial weights of `seed`. And what is
    known of the weights, as a record's `host` has it."""
    network: nn.Module = host.build(target.shape, target.num_classes, seed)
    facts: dict[str, Any] = {"head": "kept" if keep_head else "new"}
    tensors: dict[str, Tensor] | None = None
    if host.is_pretrained:
        trained, found = pretrain(host, backend, outputs)
        facts |= found
        own = network.state_dict()
        new = set() if keep_head else set(weights.head_names(host, own))
        tensors = {name: own[name] if name in new else tensor for name, tensor in trained.state_dict().items()}
    elif host.comes_with_weights:  # a module's are in the network already
        facts["weights"] = host.weights or host.name
        tensors = weights.matching(host, network, keep_head)
    if tensors is not None:
        network.load_state_dict(tensors)
    return network, facts


def untrained(host: HostSpec) -> HostSpec:
    """The host as it is without any pretraining here."""
    return replace(host, pretrain=PretrainSpec())


def _shapes(host: HostSpec, images: ImageData) -> dict[str, tuple[int, ...]]:
    """Those of the tensors of the host for such images, but for its classifier's."""
    from layergraft.hosts.meta_device import meta_host

    state = meta_host(host, images.shape, images.num_classes).state_dict()
    head = weights.head_names(host, state)
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in head}
