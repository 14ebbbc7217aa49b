"""Donors by their weights: made once, kept in `outputs/donors/<key>/`, then read."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from layergraft import checkpoints
from layergraft.donors.analytic import GaborDonor, PatchDonor
from layergraft.donors.controls import controlled
from layergraft.donors.end_to_end import EndToEndDonor
from layergraft.donors.extracted import ExtractedDonor
from layergraft.donors.forms import Form, Place, describe, from_json, to_json
from layergraft.donors.trained import TrainedDonor
from layergraft.errors import RunFailed, UserError, require
from layergraft.files import digest, forget, label, once, write_atomic, write_json
from layergraft.hosts import weights
from layergraft.recipes import OptimSpec, PhaseSpec, StrategySpec
from layergraft.schema import canonical
from layergraft.seeds import stream
from layergraft.specs import RESULT_VERSION, Control, DataSpec

if TYPE_CHECKING:
    from torch import nn

    from layergraft.data.images import ImageData
    from layergraft.training.fit import Backend

WEIGHTS, PROVENANCE, NETWORK = "donor.safetensors", "donor.json", "network.safetensors"
ALL_TRAINS = StrategySpec("all", groups={"all": [".*"]}, phases={"start": PhaseSpec(0, {"all": 1.0})})


class AnyDonor(Protocol):
    """What every kind has, those of other packages too: all but the two that are trained here `make` their layer."""

    name: str
    kind: str | None
    seed: int

    def form(self, place: Place) -> Form: ...

    def source(self) -> str: ...


class _Maker(AnyDonor, Protocol):
    def make(self, place: Place) -> nn.Module: ...


@runtime_checkable
class Learner(AnyDonor, Protocol):
    """A donor that learns from images."""

    data: DataSpec


@dataclass(frozen=True)
class Donor:
    """A layer and where it comes from."""

    layer: nn.Module
    form: Form
    provenance: dict[str, Any]
    """name, key, form and seed; for a trained donor also data fingerprint, recipe and accuracies in percent; for one cut
    from a file what matched."""


def require_batch(where: str, optim: OptimSpec, data: ImageData) -> None:
    """Raise UserError where the training split has fewer images than a batch takes."""
    have, times = len(data.train), f" x {where}.accumulate={optim.accumulate}" if optim.accumulate > 1 else ""
    require(
        optim.batch_size * optim.accumulate <= have,
        f"{where}.batch_size is {optim.batch_size}{times}, but there are {have} training images",
    )


def source_data(spec: AnyDonor, place: Place) -> ImageData | None:
    """The images that `spec` learns from, None where it needs none; else as `images_of`."""
    return images_of(spec, place) if isinstance(spec, Learner) else None


def images_of(spec: Learner, place: Place) -> ImageData:
    """The images that `spec` learns from. Raises UserError where it cannot.

    They have the channels of the host's images (grey repeated, colours averaged) unless `spec` names its own.
    """
    try:
        data: ImageData = spec.data.load(spec.seed)
    except UserError as error:
        raise UserError(f"donor: {error}") from error
    optim: OptimSpec | None = getattr(spec, "optim", None)
    if optim is not None:
        from layergraft.training.optimizers import class_of

        class_of(optim)
        require_batch("donor.optim", optim, data)
    if isinstance(spec, EndToEndDonor):
        return data.with_channels(spec.host.in_channels)
    own = getattr(spec, "in_channels", None)
    return data if own is not None or 1 not in (data.channels, place.image[0]) else data.with_channels(place.image[0])


@lru_cache(maxsize=256)
def _dry_run(form: Form, k: int, image: tuple[int, int, int], num_classes: int) -> None:
    """Raise UserError where the single-layer network cannot take such images."""
    import torch

    from layergraft.hosts.blocks import blank, require_room

    network = blank(lambda: TrainedDonor(k=k).network(form, image[0], num_classes)[0])
    require_room("the donor's own network", network)
    try:
        network(torch.empty(2, *image, device="meta"))
    except RuntimeError as error:
        raise UserError(
            f"donor: a {describe(form)} cannot be trained on images of {image[1]} x {image[2]} pixels: {str(error).splitlines()[0]}"
        ) from None


def _fields(spec: AnyDonor) -> dict[str, Any]:
    fields: dict[str, Any] = canonical(spec)
    if isinstance(spec, Learner):
        fields["data"] = spec.data.identity()
    return fields


def identity(spec: AnyDonor, place: Place, backend: Backend) -> dict[str, Any]:
    """All that decides a donor's weights. Raises UserError where it cannot be made."""
    data = source_data(spec, place)
    if isinstance(spec, TrainedDonor) and data is not None:
        _dry_run(spec.form(place), spec.k, data.shape, data.num_classes)
    fields = _fields(spec)
    if isinstance(spec, TrainedDonor):
        for name in ("kind", "in_channels", "out_channels", "kernel_size", "stride", "padding", "bias"):
            del fields[name]  # resolved in the form
    if not isinstance(spec, PatchDonor):
        fields["name"] = type(spec).__name__  # what a YAML calls it changes nothing
    known: dict[str, Any] = {"version": RESULT_VERSION, "spec": fields, "form": to_json(spec.form(place))}
    if isinstance(spec, ExtractedDonor):
        facts = spec.facts(place)
        fields["path"], fields["layer"] = facts["file_digest"], facts["layer"]
        if spec.control is Control.none:
            del fields["seed"]  # nothing is drawn
    if isinstance(spec, GaborDonor) and spec.control is Control.none:
        del fields["seed"]
    if isinstance(spec, EndToEndDonor):
        fields["layer"] = spec.layer or place.path
        fields["host"]["weights"] = weights.fingerprint(spec.host)
        if not spec.is_trained:  # then its data and its training say nothing
            for name in ("data", "optim", "schedule", *(["seed"] if spec.control is Control.none else [])):
                del fields[name]
            return known
    if data is not None:
        known |= {"data": data.fingerprint, "image": list(data.shape), "precision": backend.precision}
    return known


def key_of(spec: AnyDonor, place: Place, backend: Backend) -> str:
    """The name of a donor's folder: readable, and unique by the hash of all that decides its weights."""
    form = spec.form(place)
    size = getattr(getattr(form, "conv", form), "kernel_size", None)
    what = f"{form.kind}{f'{size}x{size}' if size else ''}-{form.in_channels}-{form.out_channels}"
    known = identity(spec, place, backend)
    control = getattr(spec, "control", Control.none)
    parts = [what, spec.source(), *([control.name] if control is not Control.none else [])]
    return label(*parts, *([f"seed{spec.seed}"] if "seed" in known["spec"] else []), digest(known))


def obtain(spec: AnyDonor, place: Place, backend: Backend, outputs: Path) -> Donor:
    """The donor of `spec` for this place: made by the first who asks, in whichever process; the others wait and read it.

    Raises RunFailed where its training diverges.
    """
    key = key_of(spec, place, backend)
    folder = outputs / "donors" / key

    def make(unfinished: Path) -> None:
        layer, facts = _made(spec, place, backend, outputs, unfinished)
        _save(layer, unfinished / WEIGHTS)
        known = {"name": spec.name, "key": key, "seed": spec.seed, **identity(spec, place, backend), **facts}
        write_json(unfinished / PROVENANCE, known)

    once(folder, make)
    return _read(folder)


def forget_donor(outputs: Path, key: str, older_than: float) -> None:
    """Remove a donor, and what it was made from, where that was before `older_than`: it is made anew when it is needed."""
    folder = outputs / "donors" / key
    if (folder / PROVENANCE).exists():
        known = json.loads((folder / PROVENANCE).read_text())
        for name in ("control_of", "network"):
            if isinstance(known.get(name), str):
                forget_donor(outputs, known[name], older_than)
    forget(folder, older_than)


def _made(
    spec: AnyDonor, place: Place, backend: Backend, outputs: Path, folder: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """The layer and what else is known of it; what its training writes goes to `folder`."""
    control: Control = getattr(spec, "control", Control.none)
    if control is not Control.none:
        learned: Any = spec
        plain = obtain(replace(learned, control=Control.none), place, backend, outputs)
        return controlled(plain.layer, control, spec.seed), {"control_of": plain.provenance["key"]}
    if isinstance(spec, TrainedDonor):
        data = images_of(spec, place)
        network, layer = spec.network(spec.form(place), data.channels, data.num_classes)
        metrics = _fit(network, data, spec, backend, folder, key_of(spec, place, backend))
        _save(network, folder / NETWORK)  # what the layer saw in training can be seen again
        return layer, {"num_train": len(data.train), "metrics": metrics}
    if isinstance(spec, EndToEndDonor):
        return _end_to_end(spec, place, backend, outputs)
    facts = spec.facts(place) if isinstance(spec, ExtractedDonor) else {}
    return cast(_Maker, spec).make(place), facts


def _end_to_end(spec: EndToEndDonor, place: Place, backend: Backend, outputs: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network is kept beside the donors under a key of its own, so that every site cuts from the same."""
    from safetensors.torch import load_file

    data = images_of(spec, place)
    network = spec.network(data.shape, data.num_classes)
    if not spec.is_trained:
        return spec.cut(network, data, place), {"network": spec.host.weights}
    fields = _fields(replace(spec, layer=None, kind=None, name="network", control=Control.none))
    fields["host"]["weights"] = weights.fingerprint(spec.host)
    known = {"version": RESULT_VERSION, "spec": fields, "data": data.fingerprint, "precision": backend.precision}
    folder = outputs / "donors" / label("network", spec.source(), f"seed{spec.seed}", digest(known))

    def make(unfinished: Path) -> None:
        metrics = _fit(network, data, spec, backend, unfinished, folder.name)
        _save(network, unfinished / NETWORK)
        write_json(unfinished / PROVENANCE, {**known, "num_train": len(data.train), "metrics": metrics})

    once(folder, make)
    network.load_state_dict(load_file(folder / NETWORK))
    metrics = json.loads((folder / PROVENANCE).read_text())["metrics"]
    return spec.cut(network, data, place), {"network": folder.name, "metrics": metrics}


def _fit(
    network: nn.Module, data: ImageData, spec: TrainedDonor | EndToEndDonor, backend: Backend, folder: Path, key: str
) -> dict[str, float]:
    """Train `network` in place on one thread and return its figures. Raises RunFailed, with `key`, where it diverges."""
    import torch

    from layergraft.data.batches import Batches, BatchSpec
    from layergraft.strategies import make_plan
    from layergraft.training.fit import Recipe, fit
    from layergraft.training.module import Diverged, norm_paths

    names = [name for name, _ in network.named_parameters()]
    plan = make_plan(ALL_TRAINS, names, norm_paths(network), {}, spec.schedule.epochs)
    batch = BatchSpec(spec.optim.batch_size, spec.optim.accumulate, spec.data.shift, spec.data.flip)
    batches = Batches.of(data, batch, stream(spec.seed, "donor", "data"), backend.device)
    # One thread, and so on, whoever asks: those change the last bits, and runs share what comes out.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = replace(backend, devices=1, compile=False, channels_last=None)
        fitted = fit(network, plan, batches, Recipe(spec.optim, spec.schedule), one, folder=folder)
    except Diverged as error:
        raise RunFailed(f"the donor {key} diverged: {error}") from error
    finally:
        torch.set_num_threads(threads)
    return fitted.summary()


def _save(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    write_atomic(path, save(tensors))  # safetensors' own files are shut to colleagues


def _read(folder: Path) -> Donor:
    provenance = json.loads((folder / PROVENANCE).read_text())
    form = from_json(provenance["form"])
    layer = form.build()
    file = checkpoints.read(str(folder / WEIGHTS))
    layer.load_state_dict(checkpoints.require_match(str(folder), file.tensors, layer.state_dict()))
    return Donor(layer, form, provenance)
