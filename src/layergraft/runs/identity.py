"""What decides whether two runs are the same: the key of a run is the hash of its identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from layergraft.config.registry import canonical
from layergraft.config.schema import RESULT_VERSION, Config
from layergraft.data.image_data import ImageData
from layergraft.store.files import digest, label
from layergraft.surgery import Operation


def axes(config: Config) -> dict[str, str | int]:
    """The names by which people tell runs apart."""
    return {
        "strategy": config.strategy.name,
        "site": "+".join(str(site) for site in config.sites) if config.donor.is_layer else "-",
        "host": config.host.name,
        "donor": config.donor.name,
        "data": config.data.name,
        "seed": config.seed,
    }


def identity_of(
    config: Config, precision: str, images: ImageData, host: Mapping[str, Any], donor_keys: Sequence[str]
) -> dict[str, Any]:
    """All that decides a run's numbers: its config less `exec`, and the content of its data, weights and donors. `host` is
    what stands in the place of the config's own: `weights` (a digest), `pretrain` (a network's key), `head`."""
    body = canonical(config)
    del body["exec"]
    body |= {"precision": precision, "init_seed": config.seed_of("init"), "order_seed": config.seed_of("order")}
    body["data"] = config.data.identity() | images.seeds
    body["host"] |= host
    body["donor"] = list(donor_keys)  # a donor's key holds all that it is, its file by content
    body["site"] = config.sites
    if config.optim.name.lower() != "sgd":
        del body["optim"]["momentum"]  # others take theirs from the options
    body["surgery"] = cast(Operation, config.surgery).decides()
    if not config.donor.is_layer:
        body["site"] = body["surgery"] = None  # nothing goes anywhere: the arm is the same for every site
    return {"version": RESULT_VERSION, "config": body, "data": images.fingerprint}


def key_by(axes: Mapping[str, str | int], identity: dict[str, Any]) -> str:
    """The name of a run's folder: readable, and unique by the hash of its identity."""
    parts = [part for name, part in axes.items() if name not in ("data", "seed") and part != "-"]
    return label(*parts, f"seed{axes['seed']}", digest(identity))
