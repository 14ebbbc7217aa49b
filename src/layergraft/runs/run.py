"""One run: trained, and written to the store."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import json
import math
import platform
import re
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from safetensors.torch import save
from torch.utils.tensorboard import SummaryWriter

import layergraft
from layergraft.claims import Claimed, claim
from layergraft.data.batches import Batches
from layergraft.donors import NoDonor
from layergraft.donors.cache import Learner
from layergraft.errors import UserError, require
from layergraft.files import write_atomic, write_json
from layergraft.packages import added
from layergraft.runs.assemble import (
    Assembled,
    assemble,
    axes,
    batch_spec,
    checked,
    outputs_of,
    probes_of,
    recipe_of,
    set_threads,
    timeline_of,
)
from layergraft.runs.failures import disk_full, is_full, spoils_its_process, transient
from layergraft.runs.prepared import written
from layergraft.runs.similarity import similarity
from layergraft.schema import canonical
from layergraft.seeds import stream
from layergraft.specs import Config
from layergraft.store import RECORD, claim_of, is_done, read_record, run_folder
from layergraft.timeline import picture
from layergraft.training import ranks
from layergraft.training.checkpoints import CHECKPOINT, facts_of, require_same
from layergraft.training.fit import Backend, EventsLogger, Fitted, Saving, fit
from layergraft.training.module import Diverged


class Pruned(Exception):
    """A search has seen enough of the run; its checkpoint stays, for whoever wants it whole."""


def execute(
    config: Config,
    callbacks: Sequence[pl.Callback] = (),
    *,
    wait: bool = True,
    newer_than: float = 0.0,
    planned: str | None = None,
) -> dict[str, Any]:
    """Do the run, unless the store has it, and return its record. One that was interrupted goes on from its checkpoint.

    Where another process does it, that is waited for, and the run done if the other dies; without `wait`, Claimed is
    raised. What was written before `newer_than` (of the disk's clock) does not count as done. Raises UserError, before
    any training, for what is wrong in the config and where the run's key is not the `planned` one, and DiskFull.
    Whatever else goes wrong ends in the record as `failed` or `diverged`, with the traceback; Ctrl-C as `interrupted`,
    and goes on up.
    """
    set_threads(config)
    run = checked(config)
    require(
        planned is None or run.key == planned,
        f"it was planned as {planned} and is {run.key} here: its data or files have changed, or precision=auto resolves differently here; set precision=float32 or bf16_mixed",
    )
    outputs = outputs_of(config)
    folder = run_folder(outputs, run.key)
    since = math.inf if config.exec.rerun else newer_than
    with claim(claim_of(outputs, run.key), wait) as ours:
        record = read_record(folder)
        if record is not None and is_done(folder, since):
            require(
                config.exec.resume is None,
                f"exec.resume: the run {run.key} is in the store already; exec.rerun=true does it again from the checkpoint",
            )
            return record
        resume = _checkpoint(config, run, folder, record, since)
        if resume is None:
            shutil.rmtree(folder, ignore_errors=True)  # what a run that did not end has left
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*"):  # files that one who was killed was writing
            with suppress(OSError):
                left.unlink()
        (folder / RECORD).unlink(missing_ok=True)
        record = {"key": run.key, "status": "completed", "axes": axes(config), "config": canonical(config)}
        record["started"] = datetime.now(UTC).isoformat(timespec="seconds")
        record["environment"] = environment(run.backend)
        record["resumed"] = resume is not None
        start = time.perf_counter()
        try:
            write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(record["config"])))
            interrupted = _outcome(config, folder, record, resume, callbacks)
            record.setdefault("timings", {})["total_seconds"] = time.perf_counter() - start
            if not ours():  # it was stopped for so long that another has taken it over
                raise Claimed(f"another process has taken {run.key} over")
            write_json(folder / RECORD, record)
        except OSError as error:
            if is_full(error):
                raise disk_full(outputs) from error
            raise
        if record["status"] == "completed" and ours():
            (folder / CHECKPOINT).unlink(missing_ok=True)
        if interrupted:
            raise KeyboardInterrupt
        return record


def _outcome(
    config: Config, folder: Path, record: dict[str, Any], resume: Path | None, callbacks: Sequence[pl.Callback]
) -> bool:
    """Train, and note in `record` what came of it; whether it was interrupted. Raises OSError where the disk is full."""
    try:
        _train(config, folder, record, resume, callbacks)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
        record["status"] = "interrupted"
        return True
    except Pruned as error:
        record.update(status="pruned", error=str(error))
    except Diverged as error:
        record.update(status="diverged", error=str(error), traceback=traceback.format_exc())
    except Exception as error:
        if is_full(error):
            raise OSError(errno.ENOSPC, "the disk is full") from error
        record.update(status="failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        record["transient"], record["process spoilt"] = transient(error), spoils_its_process(error)
    return False


def _checkpoint(
    config: Config, run: Assembled, folder: Path, record: dict[str, Any] | None, since: float
) -> Path | None:
    """The checkpoint to go on from: the one that is asked for, or what this run left when it was interrupted.

    Raises UserError where the one asked for is another run's.
    """
    if config.exec.resume is not None:
        require_same(Path(config.exec.resume), run.identity)
        return Path(config.exec.resume)
    left = folder / CHECKPOINT
    if not left.exists() or left.stat().st_mtime < since:
        return None
    if record is not None and record["status"] not in ("interrupted", "pruned") and not record.get("transient"):
        return None
    try:
        facts_of(left)
    except UserError:
        return None  # the machine died while it wrote it
    return left


def _train(
    config: Config, folder: Path, record: dict[str, Any], resume: Path | None, callbacks: Sequence[pl.Callback]
) -> None:
    run = assemble(config)
    record["donors"] = [donor.provenance for donor in run.donors]
    record["surgery"] = [
        {"site": graft.site.path, "donor": graft.donor, "did": list(graft.did)} for graft in run.grafted.grafts
    ] if run.grafted else []  # fmt: skip
    record["data"] = written(config.data, run.data, outputs_of(config))
    record["similarity"] = similarity(config, run)
    batches = Batches.of(
        run.data,
        batch_spec(config),
        stream(config.seed, "data"),
        run.backend.device,
        config.exec.data_gib,
        config.exec.readers,
    )
    scale = batches.train.normalize
    record["normalization"] = {"mean": scale.mean.flatten().tolist(), "std": scale.std.flatten().tolist()}
    probes = probes_of(config, run, batches)
    saving = Saving(folder, config.exec.checkpoint_seconds, run.identity, resume)
    seed = stream(config.seed, "training")
    options: dict[str, Any] = {"folder": folder, "probe": probes, "saving": saving}
    start = time.perf_counter()
    if run.backend.devices > 1:
        fitted = ranks.fit(run.network, run.plan, batches, recipe_of(config), run.backend, seed=seed, **options)
    else:
        own_gpu = [torch.cuda.current_device()] if run.backend.device == "cuda" else []
        with torch.random.fork_rng(own_gpu):  # a network that draws does so from its own seed
            torch.default_generator.manual_seed(seed)
            if own_gpu:  # torch.manual_seed would seed every GPU, and leave the others so
                torch.cuda.manual_seed(seed)
            fitted = fit(run.network, run.plan, batches, recipe_of(config), run.backend, callbacks=callbacks, **options)
    record["timings"] = {"fit_seconds": time.perf_counter() - start}
    record["frozen prefixes"] = fitted.prefixes
    record["plan"] = timeline_of(config, run, fitted.curves)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in run.network.state_dict().items()}
    write_atomic(folder / "model.safetensors", save(tensors))
    write_atomic(folder / "curves.csv", _curves(fitted))
    record["probes"] = probes.points
    steps = len(batches.train) // config.optim.accumulate
    record["metrics"] = {**fitted.summary(), **probes.summary(fitted.curves, steps)}
    _report(config, folder, fitted, record)


def _report(config: Config, folder: Path, fitted: Fitted, record: dict[str, Any]) -> None:
    """The plan as a picture, and the figures that runs are compared by, for TensorBoard's HParams tab."""
    logger = EventsLogger(folder)
    logger.experiment.add_image("plan", picture(json.dumps(record["plan"])), dataformats="HWC")
    # Under names of their own: TensorBoard keeps these as scalars too, at step 0, amid a curve of that name.
    # Those that every run has: the tab shows what all runs share.
    figures = {f"final/{name.replace('/', '_')}": value for name, value in fitted.summary().items()}
    logger.log_hyperparams(_hparams(config), figures)
    _by_strategy(logger.experiment, config.strategy.name, fitted.curves)
    logger.close()


def _by_strategy(writer: SummaryWriter, strategy: str, curves: Sequence[dict[str, float]]) -> None:
    """The validation curve again under the strategy's name, with a layout for the Custom Scalars tab: TensorBoard joins the
    layouts of all runs, so that each strategy has a chart there with its runs. It asks for every run in every chart, so
    there is one a strategy."""
    tag = f"strategy/{strategy}/val_acc"
    for point in curves:
        writer.add_scalar(tag, point["val/acc"], int(point["epoch"]))
    writer.add_custom_scalars({"validation accuracy, %": {strategy: ["Multiline", [f"^{re.escape(tag)}$"]]}})


def _hparams(config: Config) -> dict[str, str | int]:
    """The axes for TensorBoard's HParams tab, and in a few words whatever else may be swept, under keys that all runs share.
    The tab shows the first five by the alphabet: the axes."""
    named = axes(config)
    optim, schedule, host, donor = config.optim, config.schedule, config.host, config.donor
    grafted = not isinstance(donor, NoDonor)
    named["target data"] = _told(config.data)
    named["surgery"] = _told(config.surgery) if grafted else "-"
    named["trained on"] = _told(donor.data) if isinstance(donor, Learner) else "-"
    named["training"] = f"{optim.name}, lr {optim.lr:g}, {schedule.name}, {schedule.epochs} epochs"
    named["trains what"] = "; ".join(f"{name}: {', '.join(given)}" for name, given in config.strategy.groups.items())
    named["variant of host"] = f"width {host.width}, {host.norm} norm, {'' if host.skips else 'no '}skips"
    del named["data"]
    return named


def _told(spec: Any) -> str:
    """The name of a spec, and what of it is not as its kind has it by default: `cifar10, half=A, corrupt.noise=5`."""
    return ", ".join([spec.name, *(part for part in _changed(spec) if not part.startswith("name="))])


def _changed(spec: Any) -> Iterator[str]:
    for item in dataclasses.fields(spec):
        value = getattr(spec, item.name)
        if dataclasses.is_dataclass(value):
            yield from (f"{item.name}.{part}" for part in _changed(value))
        elif value != item.default and (item.default_factory is dataclasses.MISSING or value != item.default_factory()):
            yield f"{item.name}={value}"


def _curves(fitted: Fitted) -> str:
    text = io.StringIO()
    fields = dict.fromkeys(name for point in fitted.curves for name in point)
    writer = csv.DictWriter(text, fieldnames=fields, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(fitted.curves)
    return text.getvalue()


def environment(backend: Backend) -> dict[str, Any]:
    """What ran it: versions and hardware."""
    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", *added())
    return {
        "device": torch.cuda.get_device_name() if backend.device == "cuda" else f"CPU {platform.machine()}",
        "precision": backend.precision,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": {"layergraft": layergraft.__version__, **{name: version(name) for name in packages}},
    }
