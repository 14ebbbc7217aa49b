"""Donors by their weights: made once, kept in `outputs/donors/<key>/`, then read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layergraft.donors.donor_kind import DonorKind, identity, key_of
from layergraft.hosts.layer_architectures import Architecture, Slot, from_json
from layergraft.networks import network_cache
from layergraft.store.files import create_once, discard, write_json

if TYPE_CHECKING:
    from torch import nn

    from layergraft.training.backend import Backend

WEIGHTS, PROVENANCE = "donor.safetensors", "donor.json"


@dataclass(frozen=True)
class Donor:
    """A layer and where it comes from."""

    layer: nn.Module
    architecture: Architecture
    provenance: dict[str, Any]
    """name, key, form and seed; for a trained donor also data fingerprint, recipe and accuracies in percent; for one cut
    from a file what matched."""

    @property
    def key(self) -> str:
        return str(self.provenance["key"])


def get_or_create(spec: DonorKind, slot: Slot, backend: Backend, outputs: Path) -> Donor:
    """The donor of `spec` for this place: made by the first who asks, in whichever process; the others wait and read it.
    Raises RunFailed where its training diverges."""
    donor, key = spec.controlled(), key_of(spec, slot, backend)

    def make(unfinished: Path) -> None:
        layer, facts = donor.build(slot, backend, outputs)
        network_cache.save(layer, unfinished / WEIGHTS)
        known = {"name": donor.name, "key": key, "seed": donor.seed, **identity(donor, slot, backend), **facts}
        write_json(unfinished / PROVENANCE, known)

    folder = _folder(outputs, key)
    create_once(folder, make)
    provenance = json.loads((folder / PROVENANCE).read_text())
    architecture = from_json(provenance["architecture"])
    layer = architecture.build()
    network_cache.load(layer, folder / WEIGHTS)
    return Donor(layer, architecture, provenance)


def is_kept(outputs: Path, key: str) -> bool:
    return (_folder(outputs, key) / PROVENANCE).exists()


def discard_donor(outputs: Path, key: str, older_than: float) -> None:
    """Remove a donor, and what it was made from, where that was before `older_than`: it is made anew when it is needed."""
    if is_kept(outputs, key):
        known = json.loads((_folder(outputs, key) / PROVENANCE).read_text())
        if "control_of" in known:
            discard_donor(outputs, known["control_of"], older_than)
        if "network" in known:
            discard(network_cache.folder_of(outputs, known["network"]), older_than)
    discard(_folder(outputs, key), older_than)


def _folder(outputs: Path, key: str) -> Path:
    return outputs / "donors" / key
