"""One run: assembled from its config, checked, trained, and written to the store."""

from __future__ import annotations

import csv
import io
import json
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from layergraft import surgery
from layergraft.data.batches import Batches, Normalize
from layergraft.data.images import ImageData
from layergraft.donors import NoDonor
from layergraft.donors.cache import Donor, key_of, obtain, require_batch
from layergraft.donors.forms import Form, Place
from layergraft.files import digest, label, write_atomic, write_json
from layergraft.hosts import sites, skeletons, weights
from layergraft.hosts.blocks import blank
from layergraft.hosts.sites import Site
from layergraft.seeds import stream
from layergraft.specs import RESULT_VERSION, Config, SurgerySpec, canonical
from layergraft.store import RECORD, is_done, read_record, run_folder
from layergraft.strategies import Plan, make_plan
from layergraft.surgery import Grafted
from layergraft.training.fit import Backend, Fitted, fit
from layergraft.training.module import Diverged, check, norm_paths


@dataclass(frozen=True)
class Assembled:
    """A run ready to train."""

    key: str
    donor_keys: tuple[str, ...]
    """A key for each site; none without a donor."""
    donors: tuple[Donor, ...]
    """A donor for each site; none without a donor, and where the run has only been checked."""
    grafted: Grafted | None
    """None without a donor."""
    network: nn.Module
    plan: Plan
    data: ImageData


def axes(config: Config) -> dict[str, str | int]:
    """The names by which people tell runs apart."""
    return {
        "strategy": config.strategy.name,
        "site": "-" if isinstance(config.donor, NoDonor) else "+".join(str(site) for site in config.sites),
        "host": config.host.name,
        "donor": config.donor.name,
        "data": config.data.name,
        "seed": config.seed,
    }


def outputs_of(config: Config) -> Path:
    return Path(config.exec.outputs)


def identity(config: Config, backend: Backend, fingerprint: str, donor_keys: Sequence[str]) -> dict[str, Any]:
    """All that decides a run's numbers: its config less `exec`, and the content of its data, weights and donors."""
    body = canonical(config)
    del body["exec"]
    body["precision"] = backend.precision
    body["host"]["weights"] = weights.fingerprint(config.host)
    body["donor"] = list(donor_keys)  # a donor's key holds all that it is, its file by content
    body["site"] = config.sites
    operation = body["surgery"]
    looks = operation["calibrate"] != "none" or (operation["fit"], operation["start"]) == ("project", "least_squares")
    acts = {"where": operation["name"] == "insert", "start": operation["fit"] == "project", "images": looks}
    for name in (name for name, does in acts.items() if not does):
        del operation[name]
    if isinstance(config.donor, NoDonor):
        body["site"] = body["surgery"] = None  # nothing goes anywhere: the arm is the same for every site
    return {"version": RESULT_VERSION, "config": body, "data": fingerprint}


def assemble(config: Config, backend: Backend) -> Assembled:
    """The network with the donor in place (made first, if nobody has yet) and the plan for it.

    Raises UserError as `checked` does.
    """
    data = _data(config)
    host = weights.pretrained(config.host, data.shape, data.num_classes, config.seed)
    donors: list[Donor] = []

    def donor_at(place: Place) -> nn.Module:
        donors.append(obtain(config.donor, place, backend, outputs_of(config)))
        return donors[-1].layer

    run = _put_together(config, backend, data, host, donor_at)
    if run.grafted is None:
        return run
    device = torch.device(backend.device)
    run.grafted.host.to(device)
    run.network.to(device)
    with backend.arithmetic():
        grafted = surgery.calibrated(run.grafted, calibration_images(config, data)[0].to(device), config.surgery)
    grafted.host.cpu()
    grafted.network.cpu()
    return replace(run, donors=tuple(donors), grafted=grafted, network=grafted.network)


def calibration_images(config: Config, data: ImageData) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to `surgery.images` training images, normalised, as the seed draws them, and their labels."""
    generator = torch.Generator().manual_seed(stream(config.seed, "calibration"))
    index = torch.randperm(len(data.train), generator=generator)[: config.surgery.images].numpy()
    chosen = data.train.take(index)
    normalize = Normalize(data.train, torch.device("cpu"))
    return normalize(torch.from_numpy(chosen.x_NCHW)), torch.from_numpy(chosen.y_N)


def checked(config: Config) -> Assembled:
    """The same without weights, so that a large sweep is checked fast; nothing is trained.

    Raises UserError for whatever in the config cannot be: this is all the checking there is.
    """
    backend = Backend.resolve(config.exec.device, config.precision)
    data = _data(config)
    return _put_together(config, backend, data, _skeleton(config, data), None)


def _data(config: Config) -> ImageData:
    data = config.data.load(config.seed).with_channels(config.host.in_channels)
    require_batch("optim", config.optim, data)
    return data


def sites_of(config: Config, data: ImageData) -> dict[str, Site]:
    """Every site of this run's host."""
    return skeletons.sites_of(config.host, data.shape, data.num_classes)


def _skeleton(config: Config, data: ImageData) -> nn.Module:
    return skeletons.skeleton(config.host, data.shape, data.num_classes)


@lru_cache(maxsize=256)
def _grafted_skeleton(
    host: nn.Module, where: tuple[Site, ...], forms: tuple[Form, ...], operation: str, image: tuple[int, int, int]
) -> Grafted:
    donors = [(site, blank(form.build)) for site, form in zip(where, forms, strict=True)]
    return surgery.graft(host, donors, SurgerySpec(**json.loads(operation)), image)


def _places(config: Config, data: ImageData) -> tuple[list[Site], list[Place]]:
    there, kind = sites_of(config, data), sites.BLOCK if config.donor.kind == "block" else sites.CONV
    where = [sites.resolve(there, site, config.host.name, kind) for site in config.sites]
    surgery.require_apart(where)
    host = _skeleton(config, data)
    return where, [surgery.place_of(host, site, config.surgery, data.shape) for site in where]


def _put_together(
    config: Config,
    backend: Backend,
    data: ImageData,
    host: nn.Module,
    donor_at: Callable[[Place], nn.Module] | None,
) -> Assembled:
    """The run with the donors that `donor_at` gives; with skeletons of them for None."""
    network, donor_keys, grafted = host, (), None
    roles = {**config.host.roles, "graft": [], "adapter": []}
    check(config.optim, config.schedule)
    if not isinstance(config.donor, NoDonor):
        where, places = _places(config, data)
        donor_keys = tuple(key_of(config.donor, place, backend) for place in places)
        forms = tuple(config.donor.form(place) for place in places)
        checked = _grafted_skeleton(
            _skeleton(config, data), tuple(where), forms, json.dumps(canonical(config.surgery)), data.shape
        )
        grafted = checked
        if donor_at is not None:
            layers = [(site, donor_at(place)) for site, place in zip(where, places, strict=True)]
            grafted = surgery.graft(host, layers, config.surgery, data.shape, config.host.roles["head"], config.seed)
        network = grafted.network
        roles |= grafted.roles
    names = [name for name, _ in network.named_parameters()]
    plan = make_plan(config.strategy, names, norm_paths(network), roles, config.schedule.epochs)
    parts = [part for name, part in axes(config).items() if name not in ("data", "seed") and part != "-"]
    key = label(*parts, f"seed{config.seed}", digest(identity(config, backend, data.fingerprint, donor_keys)))
    return Assembled(key, donor_keys, (), grafted, network, plan, data)


def obtain_donors(config: Config) -> list[Donor]:
    """The donors that this run takes, one for each site, made where nobody has yet; none without a donor."""
    _set_threads(config)
    if isinstance(config.donor, NoDonor):
        return []
    backend = Backend.resolve(config.exec.device, config.precision)
    _, places = _places(config, _data(config))
    return [obtain(config.donor, place, backend, outputs_of(config)) for place in places]


def prepare_donors(config: Config) -> None:
    """`obtain_donors` for a worker: nothing goes back to the parent."""
    obtain_donors(config)


def execute(config: Config, callbacks: Sequence[pl.Callback] = ()) -> dict[str, Any]:
    """Do the run, unless the store has it, and return its record.

    Raises UserError, before any training, for what is wrong in the config. Whatever else goes wrong ends in the
    record as `failed` or `diverged`, with the traceback; Ctrl-C as `interrupted`, and goes on up.
    """
    _set_threads(config)
    backend = Backend.resolve(config.exec.device, config.precision)
    key = checked(config).key
    folder = run_folder(outputs_of(config), key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{key}.lock")):  # two sweeps that want the same run do it once
        record = read_record(folder)
        if is_done(record) and not config.exec.rerun:
            return record
        shutil.rmtree(folder, ignore_errors=True)  # what a run that did not end has left
        folder.mkdir()
        record = {"key": key, "status": "completed", "axes": axes(config), "config": canonical(config)}
        record["started"] = datetime.now(UTC).isoformat(timespec="seconds")
        record["environment"] = environment(backend)
        write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(record["config"])))
        start = time.perf_counter()
        try:
            _train(config, backend, folder, record, callbacks)
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
            record["status"] = "interrupted"
            raise KeyboardInterrupt from None
        except Diverged as error:
            record.update(status="diverged", error=str(error))
        except Exception as error:
            record.update(status="failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        finally:
            record.setdefault("timings", {})["total_seconds"] = time.perf_counter() - start
            write_json(folder / RECORD, record)
        return record


def _train(
    config: Config, backend: Backend, folder: Path, record: dict[str, Any], callbacks: Sequence[pl.Callback]
) -> None:
    run = assemble(config, backend)
    record["donors"] = [donor.provenance for donor in run.donors]
    record["surgery"] = [
        {"site": graft.site.path, "donor": graft.donor, "did": list(graft.did)} for graft in run.grafted.grafts
    ] if run.grafted else []  # fmt: skip
    record["groups"] = {
        group: sum(run.network.get_parameter(name).numel() for name in names)
        for group, names in run.plan.groups.items()
    }
    batches = Batches.of(
        run.data, config.optim.batch_size, config.data.shift, stream(config.seed, "data"), backend.device
    )
    start = time.perf_counter()
    fitted = fit(
        run.network,
        run.plan,
        batches,
        optim=config.optim,
        schedule=config.schedule,
        backend=backend,
        folder=folder,
        hparams=_hparams(config),
        callbacks=callbacks,
    )
    record["timings"] = {"fit_seconds": time.perf_counter() - start}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in run.network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    write_atomic(folder / "curves.csv", _curves(fitted))
    record["metrics"] = fitted.summary()


def _hparams(config: Config) -> dict[str, str | int]:
    """The axes for TensorBoard's HParams tab, which shows the first five by the alphabet: the data set comes last."""
    named = axes(config)
    named["target data"] = named.pop("data")
    named["surgery"] = "-" if isinstance(config.donor, NoDonor) else f"{config.surgery.name}, {config.surgery.fit}"
    return named


def _curves(fitted: Fitted) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=fitted.curves[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(fitted.curves)
    return text.getvalue()


def _set_threads(config: Config) -> None:
    if config.exec.threads is not None:
        torch.set_num_threads(config.exec.threads)


def environment(backend: Backend) -> dict[str, Any]:
    """What ran it: versions and hardware."""
    packages = ("layergraft", "torch", "torchvision", "pytorch-lightning", "hydra-core")
    return {
        "device": torch.cuda.get_device_name() if backend.device == "cuda" else f"CPU {platform.machine()}",
        "precision": backend.precision,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": {name: version(name) for name in packages},
    }
