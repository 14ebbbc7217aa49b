"""Donors by their weights: made once, kept in `outputs/donors/<key>/`, then read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layergraft.donors.geometry import Geometry
from layergraft.donors.random import RandomDonor, initial
from layergraft.donors.trained import TrainedDonor
from layergraft.errors import RunFailed, UserError
from layergraft.files import digest, label, write_json
from layergraft.seeds import stream
from layergraft.specs import RESULT_VERSION, OptimSpec, PhaseSpec, StrategySpec, canonical, require

if TYPE_CHECKING:
    from torch import nn

    from layergraft.data.images import ImageData
    from layergraft.training.fit import Backend

WEIGHTS, PROVENANCE = "donor.safetensors", "donor.json"
ALL_TRAINS = StrategySpec("all", {"all": [".*"]}, {"start": PhaseSpec(0, train={"all": 1.0})})


@dataclass(frozen=True)
class Donor:
    """A layer and where it comes from."""

    layer: nn.Conv2d
    provenance: dict[str, Any]
    """kind, geometry and seed; for a trained donor also key, data fingerprint, recipe and accuracies in percent."""


def require_batch(where: str, optim: OptimSpec, data: ImageData) -> None:
    """Raise UserError where the training split has fewer images than a batch takes."""
    have = len(data.train)
    require(optim.batch_size <= have, f"{where}.batch_size is {optim.batch_size}, but there are {have} training images")


def identity(spec: TrainedDonor, site: Geometry, backend: Backend) -> dict[str, Any]:
    """All that decides a trained donor's weights. Raises UserError where it cannot be trained."""
    from layergraft.training.module import check

    check(spec.optim, spec.schedule)
    try:
        data = spec.data.load(spec.seed)
    except UserError as error:
        raise UserError(f"donor: {error}") from error
    require_batch("donor.optim", spec.optim, data)
    return {
        "version": RESULT_VERSION,
        "spec": canonical(spec),
        "geometry": vars(spec.geometry(site)),
        "data": data.fingerprint,
        "precision": backend.precision,
    }


def key_of(spec: TrainedDonor, site: Geometry, backend: Backend) -> str:
    """The name of a trained donor's folder: readable, and unique by the hash of all that decides its weights."""
    shape = spec.geometry(site)
    layer = f"conv{shape.kernel_size}x{shape.kernel_size}-{shape.in_channels}-{shape.out_channels}"
    return label(layer, spec.data.name, f"seed{spec.seed}", digest(identity(spec, site, backend)))


def obtain(spec: RandomDonor | TrainedDonor, site: Geometry, backend: Backend, outputs: Path) -> Donor:
    """The donor of `spec` for a site of this shape.

    A trained donor is trained by the first who asks, in whichever process; the others wait and read it.
    """
    if isinstance(spec, RandomDonor):
        geometry = spec.geometry(site)
        return Donor(initial(geometry, spec.seed), {"kind": spec.name, "geometry": vars(geometry), "seed": spec.seed})
    from filelock import FileLock

    key = key_of(spec, site, backend)
    folder = outputs / "donors" / key
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{key}.lock"):
            if not folder.exists():
                _train(spec, site, backend, key, folder)
    return _read(folder)


def _train(spec: TrainedDonor, site: Geometry, backend: Backend, key: str, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from layergraft.data.batches import Batches
    from layergraft.strategies import make_plan
    from layergraft.training.fit import fit
    from layergraft.training.module import Diverged, norm_paths

    data = spec.data.load(spec.seed)
    geometry = spec.geometry(site)
    network, layer = spec.network(geometry, data.channels, data.num_classes)
    names = [name for name, _ in network.named_parameters()]
    plan = make_plan(ALL_TRAINS, names, norm_paths(network), {}, spec.schedule.epochs)
    batches = Batches.of(
        data, spec.optim.batch_size, spec.data.shift, stream(spec.seed, "donor", "data"), backend.device
    )
    # One thread, whoever asks: the number of threads changes the last bits, and runs share what comes out.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Built beside its place and moved there whole, so that nobody finds half a donor.
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{key}."))
    try:
        fitted = fit(
            network, plan, batches, optim=spec.optim, schedule=spec.schedule, backend=backend, folder=unfinished
        )
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in layer.state_dict().items()}
        save_file(tensors, unfinished / WEIGHTS)
        provenance = {
            "kind": spec.name,
            "key": key,
            "seed": spec.seed,
            **identity(spec, site, backend),
            "num_train": len(data.train),
            "metrics": fitted.summary(),
        }
        write_json(unfinished / PROVENANCE, provenance)
        os.chmod(unfinished, 0o755)  # mkdtemp makes 0700
        os.replace(unfinished, folder)
    except Diverged as error:
        raise RunFailed(f"the donor {key} diverged: {error}") from error
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(unfinished, ignore_errors=True)  # gone already where it was moved


def _read(folder: Path) -> Donor:
    from safetensors.torch import load_file

    provenance = json.loads((folder / PROVENANCE).read_text())
    layer = Geometry(**provenance["geometry"]).build()
    layer.load_state_dict(load_file(folder / WEIGHTS))
    return Donor(layer, provenance)
