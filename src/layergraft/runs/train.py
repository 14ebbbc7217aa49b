"""One run, done: built, trained, and written to the store."""

from __future__ import annotations

import csv
import io
import math
import platform
import shutil
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

import layergraft
from layergraft import surgery
from layergraft.config.plugins import installed
from layergraft.config.registry import canonical, name_of
from layergraft.data.batches import Batches
from layergraft.data.provenance import written
from layergraft.errors import UserError
from layergraft.hosts.sites import STAGE
from layergraft.metrics import confusion
from layergraft.metrics.tasks import Task
from layergraft.networks.network_cache import save
from layergraft.runs.build import BuiltRun, set_threads
from layergraft.runs.failures import disk_full, is_full, spoils_its_process, transient
from layergraft.runs.memory import peak_memory
from layergraft.runs.plan import RunPlan
from layergraft.runs.similarity import similarity
from layergraft.runs.tensorboard import write_figures
from layergraft.seeds import derive_seed
from layergraft.store.files import write_atomic
from layergraft.store.leases import LeaseHeld, lease
from layergraft.store.predictions import write_predictions
from layergraft.store.records import RECORD, GraftRecord, RunRecord, is_done, lease_path, read_record, write_record
from layergraft.training import ddp
from layergraft.training.backend import Backend
from layergraft.training.checkpoints import CHECKPOINT, facts_of
from layergraft.training.fit import CheckpointSettings, Fitted, fit
from layergraft.training.lightning_module import Diverged
from layergraft.training.probes import Probes, ProbeTargets
from layergraft.training.recipe import Recipe

Callbacks = Sequence[pl.Callback]


class Pruned(Exception):
    """A search has seen enough of the run; its checkpoint stays, for whoever wants it whole."""


def execute(plan: RunPlan, callbacks: Callbacks = (), *, wait: bool = True, newer_than: float = 0.0) -> RunRecord:
    """Do the run, unless the store has it, and return its record. One that was interrupted goes on from its checkpoint.

    Where another process does it, that is waited for, and the run done if the other dies; without `wait`, LeaseHeld is
    raised. What was written before `newer_than` (of the disk's clock) does not count as done. Raises DiskFull. Whatever else goes wrong ends in the record as `failed` or `diverged`,
    with the traceback; Ctrl-C as `interrupted`, and goes on up.
    """
    set_threads(plan.config)
    settings, folder = plan.config.exec, plan.folder
    since = math.inf if settings.rerun else newer_than
    with lease(lease_path(plan.outputs, plan.key), wait) as ours:
        if is_done(folder, since):
            return cast(RunRecord, read_record(folder))  # it is done, so it is there
        resume = _checkpoint(plan, since)
        if resume is None:
            shutil.rmtree(folder, ignore_errors=True)  # what a run that did not end has left
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*"):  # files that one who was killed was writing
            with suppress(OSError):
                left.unlink()
        (folder / RECORD).unlink(missing_ok=True)
        record = planned_record(plan, "completed")
        record.started = datetime.now(UTC).isoformat(timespec="seconds")
        record.environment = environment(plan.backend)
        record.resumed = resume is not None
        start = time.perf_counter()
        try:
            write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(record.config)))
            _outcome(plan, record, resume, callbacks)
            record.timings["total_seconds"] = time.perf_counter() - start
            if not ours():  # it was stopped for so long that another has taken it over
                raise LeaseHeld(f"another process has taken {plan.key} over")
            write_record(folder, record)
        except OSError as error:
            if is_full(error):
                raise disk_full(plan.outputs) from error
            raise
        if record.status == "completed" and ours():
            (folder / CHECKPOINT).unlink(missing_ok=True)
        if record.status == "interrupted":
            raise KeyboardInterrupt
        return record


def planned_record(plan: RunPlan, status: str) -> RunRecord:
    """What is known of a run before it is done."""
    config = plan.config
    kinds = {group: name_of(getattr(config, group)) for group in ("host", "donor", "data", "surgery")}
    return RunRecord(
        plan.key,
        status,
        plan.axes,
        canonical(config),
        kinds,
        notes=list(plan.notes),
        steps_per_epoch=plan.steps_per_epoch,
    )


def _outcome(plan: RunPlan, record: RunRecord, resume: Path | None, callbacks: Callbacks) -> None:
    """Build and train, and note in `record` what came of it. Raises DiskFull."""
    try:
        train(plan.build(), record, resume, callbacks)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
        record.status = "interrupted"
    except Pruned as error:
        record.status, record.error = "pruned", str(error)
    except Diverged as error:
        record.status, record.error, record.traceback = "diverged", str(error), traceback.format_exc()
    except Exception as error:
        if is_full(error):
            raise disk_full(plan.outputs) from error
        record.status, record.error = "failed", f"{type(error).__name__}: {error}"
        record.traceback = traceback.format_exc()
        record.transient, record.process_spoilt = transient(error), spoils_its_process(error)


def _checkpoint(plan: RunPlan, since: float) -> Path | None:
    """The checkpoint that this run left when it was interrupted."""
    left = plan.folder / CHECKPOINT
    if not left.exists() or left.stat().st_mtime < since:
        return None
    record = read_record(plan.folder)
    if record is not None and record.status not in ("interrupted", "pruned") and not record.transient:
        return None
    try:
        facts_of(left)
    except UserError:
        return None  # the machine died while it wrote it
    return left


def train(run: BuiltRun, record: RunRecord, resume: Path | None = None, callbacks: Callbacks = ()) -> RunRecord:
    """Train a run that is built, into its folder; `record`, with what came of it. Raises Diverged."""
    plan, config, folder = run.plan, run.config, run.plan.folder
    record.donors = [{name: fact for name, fact in donor.provenance.items() if name != "cost"} for donor in run.donors]
    record.grafts = [
        GraftRecord(graft.site.path, graft.donor, list(graft.did), dict(graft.donor_paths), list(graft.adapter_paths), list(graft.placed.replaced),
                    list(graft.calibration_paths))
        for graft in run.grafted.grafts
    ]  # fmt: skip
    record.data = written(config.data, run.images, plan.outputs)
    if twice := record.data["test images in train"]["exact"]:
        number = f"{twice} of the {len(run.images.test)} test images of {config.data.name}"
        record.notes.append(f"{number} are in its training split too, pixel by pixel: the set has them twice")
    record.similarity = similarity(run)
    settings, order = config.exec, derive_seed(config.seed_of("order"), "data")
    batches = Batches.of(
        run.images,
        plan.batches,
        order,
        plan.backend.device,
        run.normalization,
        settings.data_gib,
        settings.reader_threads,
    )
    record.normalization = run.normalization.as_record()
    record.host = {name: fact for name, fact in run.host.items() if name != "cost"}
    probes = probes_of(run, batches)
    saving = CheckpointSettings(folder, settings.checkpoint_seconds, plan.identity, resume)
    recipe = Recipe(config.optim, config.schedule, config.regularizer)
    seed = derive_seed(config.seed, "training")
    options: dict[str, Any] = {"folder": folder, "probe": probes, "saving": saving}
    peak, start = peak_memory(plan.backend.device), time.perf_counter()
    if plan.backend.devices > 1:
        fitted = ddp.fit(run.network, plan.strategy, batches, recipe, plan.backend, seed=seed, **options)
    else:
        own_gpu = [torch.cuda.current_device()] if plan.backend.device == "cuda" else []
        with torch.random.fork_rng(own_gpu):  # a network that draws does so from its own seed
            torch.default_generator.manual_seed(seed)
            if own_gpu:  # torch.manual_seed would seed every GPU, and leave the others so
                torch.cuda.manual_seed(seed)
            fitted = fit(run.network, plan.strategy, batches, recipe, plan.backend, callbacks=callbacks, **options)
    record.timings["fit_seconds"] = time.perf_counter() - start
    record.frozen_prefixes = fitted.prefixes
    record.plan = plan.timeline(fitted.curves)
    seen = plan.batches.images_per_epoch(len(run.images.train)) * len(fitted.curves)
    record.costs = {"trained_parameters": trained_parameters(record.plan), "images": seen}
    for name, cost in _made_for(run).items():
        record.costs[f"{name}_images"] = sum(one["images"] for one in cost)
        record.timings[f"{name}_seconds"] = sum(one["seconds"] for one in cost)
    if (taken := peak()) is not None:
        record.costs["peak_memory"] = taken
    save(run.network, folder / "model.safetensors")
    test = run.images.test
    write_predictions(folder, test.rows, test.y_N, fitted.test_logits.numpy())
    if run.images.task is not Task.multi_label:
        record.confusion = confusion(fitted.test_logits, torch.from_numpy(test.y_N))
    write_atomic(folder / "curves.csv", _curves(fitted))
    record.probes = probes.points
    record.metrics = {**fitted.summary(), **probes.summary(fitted.curves, plan.steps_per_epoch)}
    record.units = {name: plan.metrics[name].unit for name in record.metrics}
    write_figures(plan, fitted, record)
    return record


def _made_for(run: BuiltRun) -> dict[str, list[dict[str, Any]]]:
    """What training the host and the donors took, each network once, whoever trained it."""
    known = [("pretraining", run.host), *(("donor", donor.provenance) for donor in run.donors)]
    networks = {facts["network"]: (name, facts["cost"]) for name, facts in reversed(known) if "cost" in facts}
    return {of: [cost for name, cost in networks.values() if name == of] for of in ("pretraining", "donor")}


def trained_parameters(timeline: dict[str, Any]) -> int:
    """How many parameters learn in some epoch."""
    groups = timeline["groups"].values()
    return sum(group["parameters"] for group in groups if any(max(rates) > 0 for rates in group["lr"]))


def probes_of(run: BuiltRun, batches: Batches) -> Probes:
    """What looks at this run's graft, or at the stages of a host without one."""
    plan, config, grafts = run.plan, run.config, run.grafted.grafts
    if not grafts:
        head = config.host.roles["head"]
        subject = ProbeTargets([path for path, site in plan.sites.items() if site.kind == STAGE] + list(head))
    else:
        # As `fit` will have the network, so that what is alike gives the same bits.
        plan.backend.lay_out(run.grafted.host)
        donors = [n for n, p in run.network.named_parameters() if surgery.under(n, run.grafted.roles["graft"])]
        beside = {graft.site.path: (graft.site.path, graft.placed.replaced[-1]) for graft in grafts}
        gates = [path for graft in grafts for path in graft.placed.gates]
        kernels = [name for name in donors if run.network.get_parameter(name).ndim == 4]
        subject = ProbeTargets(
            run.grafted.watched(plan.sites), beside, run.grafted.host, donors, gates, kernels, plan.keeps_head
        )
    images = batches.val.first(config.exec.probe.images)
    with plan.backend.arithmetic():
        return Probes(config.exec.probe, run.network, subject, images, batches.val, config.schedule.epochs)


def _curves(fitted: Fitted) -> str:
    text = io.StringIO()
    fields = dict.fromkeys(name for point in fitted.curves for name in point)
    writer = csv.DictWriter(text, fieldnames=fields, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(fitted.curves)
    return text.getvalue()


def environment(backend: Backend) -> dict[str, Any]:
    """What ran it: versions and hardware."""
    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", *installed())
    return {
        "device": torch.cuda.get_device_name() if backend.device == "cuda" else f"CPU {platform.machine()}",
        "precision": backend.precision,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": {"layergraft": layergraft.__version__, **{name: version(name) for name in packages}},
    }
