"""A network that is trained here once, on one device, and kept in `outputs/networks/<key>/`, then read."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from layergraft.config.data_schema import DataSpec
from layergraft.config.training_schema import OptimSpec, PhaseSpec, ScheduleSpec, StrategySpec
from layergraft.errors import RunFailed, UserError, require
from layergraft.hosts import weight_files
from layergraft.seeds import derive_seed
from layergraft.store.files import create_once, write_atomic, write_json

if TYPE_CHECKING:
    from torch import nn

    from layergraft.data.image_data import ImageData
    from layergraft.data.normalization import Normalization
    from layergraft.training.backend import Backend
    from layergraft.training.fit import Fitted

WEIGHTS, FACTS = "network.safetensors", "network.json"
ALL_TRAINS = StrategySpec("all", groups={"all": [".*"]}, phases={"start": PhaseSpec(0, {"all": 1.0})})


def training_images(
    at: str, data: DataSpec, seed: int, optim: OptimSpec | None = None, schedule: ScheduleSpec | None = None
) -> ImageData:
    """The images that a network is to be trained on, of the keys under `at`. Raises UserError, which names them, where they cannot
    be had, the optimizer is none, its batches are larger than the training split, or training would be stopped by a metric
    that they lack."""
    try:
        images: ImageData = data.load(seed)
    except UserError as error:
        raise UserError(f"{at}: {error}") from error
    from layergraft.data.normalization import require_channels

    require_channels(f"{at}.data", data.normalize, images.channels)
    if optim is not None:
        from layergraft.training.optimizers import class_of

        class_of(optim)
        require_batch(f"{at}.optim", optim, images)
    if schedule is not None:
        schedule.early_stopping.require_task(f"{at}.schedule.early_stopping", images.task.name)
    return images


def require_batch(where: str, optim: OptimSpec, data: ImageData) -> None:
    """Raise UserError where the training split has fewer images than a batch takes."""
    have, times = len(data.train), f" x {where}.accumulate={optim.accumulate}" if optim.accumulate > 1 else ""
    said = f"{where}.batch_size is {optim.batch_size}{times}, but there are {have} training images"
    require(optim.batch_size * optim.accumulate <= have, said)


class Learning(Protocol):
    """How a network is trained."""

    optim: OptimSpec
    schedule: ScheduleSpec
    seed: int

    @property
    def data(self) -> DataSpec | None: ...


def trained(
    network: nn.Module, how: Learning, images: ImageData, folder: Path, known: dict[str, Any], backend: Backend,
    normalization: Normalization | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Give `network` the weights that training it gives, by the first who asks, in whichever process; others read them.
    Returns `network` (its key, which names `folder`), `num_train` (images), `metrics`, and `cost`: `images` that training went
    through, each as often as it did, and `seconds`. `known` is what the key is the hash of; images are normalised by `normalization`, or else as `how.data` says. Raises RunFailed where it diverges."""
    from layergraft.data.batches import BatchSpec

    key = folder.name

    def make(unfinished: Path) -> None:
        start = time.perf_counter()
        fitted = _fit(network, images, how, backend, unfinished, key, normalization)
        batch = BatchSpec(how.optim.batch_size, how.optim.accumulate)
        seen = batch.images_per_epoch(len(images.train)) * len(fitted.curves)
        facts = {"metrics": fitted.summary(), "cost": {"images": seen, "seconds": time.perf_counter() - start}}
        save(network, unfinished / WEIGHTS)
        write_json(unfinished / FACTS, {**known, "num_train": len(images.train), **facts})

    create_once(folder, make)
    load(network, folder / WEIGHTS)
    facts = json.loads((folder / FACTS).read_text())
    return {"network": key, **{name: facts[name] for name in ("num_train", "metrics", "cost")}}


def folder_of(outputs: Path, key: str) -> Path:
    return outputs / "networks" / key


def save(module: nn.Module, path: Path) -> None:
    """Write the module's tensors as safetensors."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    write_atomic(path, save(tensors))  # safetensors' own files are shut to colleagues


def load(module: nn.Module, path: Path) -> None:
    """The inverse of `save`. Raises UserError for a file that does not match."""
    tensors = weight_files.read(str(path)).tensors
    module.load_state_dict(weight_files.require_match(str(path.parent), tensors, module.state_dict()))


def _fit(
    network: nn.Module, images: ImageData, how: Learning, backend: Backend, folder: Path, key: str,
    normalization: Normalization | None,
) -> Fitted:  # fmt: skip
    """Train `network` in place on one thread. Raises RunFailed, with `key`, where it diverges."""
    import torch

    from layergraft.data.batches import Batches, BatchSpec
    from layergraft.data.normalization import chosen
    from layergraft.hosts.norms import statistics_paths
    from layergraft.strategies.phases import make_plan
    from layergraft.training.fit import fit
    from layergraft.training.lightning_module import Diverged
    from layergraft.training.recipe import Recipe

    assert how.data is not None  # it is what `images` are of
    names = [name for name, _ in network.named_parameters()]
    plan = make_plan(ALL_TRAINS, names, statistics_paths(network), {}, how.schedule.epochs)
    batch = BatchSpec(how.optim.batch_size, how.optim.accumulate, how.data.shift, how.data.flip)
    by = normalization or chosen(how.data.normalize, images.train, None)
    batches = Batches.of(images, batch, derive_seed(how.seed, "donor", "data"), backend.device, by)
    # One thread, and so on, whoever asks: those change the last bits, and runs share what comes out.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = replace(backend, devices=1, compile=False, channels_last=None)
        fitted = fit(network, plan, batches, Recipe(how.optim, how.schedule), one, folder=folder)
    except Diverged as error:
        raise RunFailed(f"the training of {key} diverged: {error}") from error
    finally:
        torch.set_num_threads(threads)
    return fitted
