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
from layergraft.data.batches import Batches
from layergraft.data.images import ImageData
from layergraft.donors import NoDonor, TrainedDonor
from layergraft.donors.cache import Donor, key_of, obtain, require_batch
from layergraft.donors.geometry import Geometry
from layergraft.files import digest, label, write_atomic, write_json
from layergraft.hosts import sites
from layergraft.seeds import stream
from layergraft.specs import RESULT_VERSION, Config, HostSpec, canonical
from layergraft.store import RECORD, is_done, read_record, run_folder
from layergraft.strategies import Plan, make_plan
from layergraft.training.fit import Backend, Fitted, fit
from layergraft.training.module import Diverged, check, norm_paths


@dataclass(frozen=True)
class Assembled:
    """A run ready to train."""

    key: str
    donor_key: str | None
    """Of a trained donor."""
    path: str | None
    """The module path of the site; None without a donor."""
    donor: Donor | None
    """None without a donor, and where the run has only been checked."""
    network: nn.Module
    plan: Plan
    data: ImageData


def axes(config: Config) -> dict[str, str | int]:
    """The names by which people tell runs apart."""
    return {
        "strategy": config.strategy.name,
        "site": "-" if isinstance(config.donor, NoDonor) else config.site,
        "host": config.host.name,
        "donor": config.donor.name,
        "data": config.data.name,
        "seed": config.seed,
    }


def outputs_of(config: Config) -> Path:
    return Path(config.exec.outputs)


def identity(config: Config, backend: Backend, fingerprint: str, donor_key: str | None) -> dict[str, Any]:
    """All that decides a run's numbers: its config less `exec`, and the content of its data and its donor."""
    body = canonical(config)
    del body["exec"]
    body["precision"] = backend.precision
    if isinstance(config.donor, NoDonor):
        body["site"] = None  # nothing goes anywhere: the arm is the same for every site
    return {"version": RESULT_VERSION, "config": body, "data": fingerprint, "donor": donor_key}


def assemble(config: Config, backend: Backend) -> Assembled:
    """The network with the donor in place (trained first, if nobody has yet) and the plan for it.

    Raises UserError as `checked` does.
    """
    data = _data(config)
    host = config.host.build(data.channels, data.num_classes, config.seed)
    donors: list[Donor] = []

    def graft(path: str, site: Geometry) -> nn.Module:
        donors.append(obtain(config.donor, site, backend, outputs_of(config)))
        return surgery.replace(host, path, donors[0].layer)

    run = _put_together(config, backend, data, host, graft)
    return replace(run, donor=donors[0] if donors else None)


def checked(config: Config) -> Assembled:
    """The same without weights, so that a large sweep is checked fast; nothing is trained.

    Raises UserError for whatever in the config cannot be: this is all the checking there is.
    """
    backend = Backend.resolve(config.exec.device, config.precision)
    data = _data(config)
    host = _skeleton(type(config.host), json.dumps(canonical(config.host)), data.channels, data.num_classes)
    return _put_together(
        config, backend, data, host, lambda path, site: _grafted_skeleton(host, path, config.donor.geometry(site))
    )


def _data(config: Config) -> ImageData:
    data = config.data.load(config.seed)
    require_batch("optim", config.optim, data)
    return data


# Checks run on torch's meta device. The runs of a sweep differ by seed and strategy more than by shape, so both are kept.
@lru_cache(maxsize=64)
def _skeleton(kind: type[HostSpec], fields: str, in_channels: int, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return kind(**json.loads(fields)).build(in_channels, num_classes, seed=0)


@lru_cache(maxsize=256)
def _grafted_skeleton(host: nn.Module, path: str, donor: Geometry) -> nn.Module:
    with torch.device("meta"):
        return surgery.replace(host, path, donor.build())


def _put_together(
    config: Config, backend: Backend, data: ImageData, host: nn.Module, graft: Callable[[str, Geometry], nn.Module]
) -> Assembled:
    network, path, donor_key = host, None, None
    roles = {**config.host.roles, "graft": []}
    check(config.optim, config.schedule)
    if not isinstance(config.donor, NoDonor):
        path = sites.resolve(host, config.site, config.host.name)
        site = Geometry.of(host.get_submodule(path))
        if isinstance(config.donor, TrainedDonor):
            donor_key = key_of(config.donor, site, backend)
        network = graft(path, site)
        roles["graft"] = [path]
    names = [name for name, _ in network.named_parameters()]
    plan = make_plan(config.strategy, names, norm_paths(network), roles, config.schedule.epochs)
    parts = [part for name, part in axes(config).items() if name not in ("data", "seed") and part != "-"]
    key = label(*parts, f"seed{config.seed}", digest(identity(config, backend, data.fingerprint, donor_key)))
    return Assembled(key, donor_key, path, None, network, plan, data)


def prepare_donor(config: Config) -> None:
    """Have the donor that this run takes trained and in its place."""
    _set_threads(config)
    assemble(config, Backend.resolve(config.exec.device, config.precision))


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
    record["site_path"] = run.path
    record["donor"] = run.donor.provenance if run.donor else None
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
