"""What a person sees of a run, its donors, its surgery and its host before anything is trained. Without Lightning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from layergraft.config.schema import Config
from layergraft.donors.donor_cache import Donor
from layergraft.errors import UserError, require
from layergraft.hosts import sites, weights
from layergraft.hosts.layer_architectures import describe
from layergraft.hosts.meta_device import meta_host, sites_of
from layergraft.runs.build import calibration_images
from layergraft.runs.plan import plan_run
from layergraft.runs.similarity import similarity
from layergraft.strategies.timeline import covered, stretches
from layergraft.surgery.calibrate import reconstruction_error
from layergraft.training.evaluation import record_activations

MEANINGS = {
    "frechet": ("Frechet distance", "low"),
    "a_distance": ("proxy A-distance (0 to 2)", "low"),
    "leep": ("LEEP", "high"),
    "logme": ("LogME", "high"),
}
TEXT_COLUMNS = ("measure", "more alike", "path", "kind", "in", "out", "norm after it", "output of", "group", "tensors",
                "epochs", "phase")  # fmt: skip


def pretrained_line(name: str, facts: Mapping[str, Any]) -> str:
    """What is known of a host that was pretrained here."""
    accuracy = facts["metrics"]["test/acc"]
    return f"{name} trained on {facts['num_train']} images of {facts['data']} classifies {accuracy:.1f}% of its test images correctly"


def host_line(name: str, facts: Mapping[str, Any]) -> str:
    """Where a run's host has its weights from, by its record."""
    if "network" in facts:
        return f"{pretrained_line(name, facts)}; classifier {facts['head']}"
    if "weights" in facts:
        return f"{name} with the weights {facts['weights']}; classifier {facts['head']}"
    return f"{name} with initial weights (host.pretrain.data=none)"


def about(donor: Donor) -> list[str]:
    """What a donor is and where it comes from, in lines."""
    known = donor.provenance
    lines = [describe(donor.architecture)]
    if pooled := known["spec"].get("pooled_to"):
        lines.append(f"trained on images pooled to {pooled[0]} x {pooled[1]} pixels (donor.resolution=site)")
    if "metrics" in known:
        lines.append(f"{known['metrics']['test/acc']:.1f}% on its own task")
    if "matched" in known:
        matched = ", ".join(f"{name} {tuple(shape)}" for name, shape in known["matched"].items())
        prefixes = f"; prefixes taken off: {', '.join(known['stripped'])}" if known["stripped"] else ""
        layer = known["layer"] or "(the whole file)"
        lines.append(f"layer {layer} of {known['file']}; stride and padding are the site's")
        lines.append(f"matched: {matched}; {known['num_others']} other tensors left{prefixes}")
    return lines


def print_sites(config: Config) -> None:
    """Every site of the host for the data's images, a line each."""
    host, data = config.host, config.images()
    found = sites_of(host, data.shape, data.num_classes)
    total = sum(p.numel() for p in meta_host(host, data.shape, data.num_classes).parameters())
    relative = [f"{name} {sites.resolve(found, name, host.name).path}" for name in sites.RELATIVE]
    width = f", width {vars(host)['width']}" if "width" in vars(host) else ""
    print(f"{host.name}{width}: {total:,} parameters; shapes for images of {_shape(data.shape)}")
    print(f"for convolutions: {', '.join(relative)}\n")
    rows = [
        (site.path, site.kind, _shape(site.in_shape), _shape(site.out_shape), str(site.stride), f"{site.num_parameters:,}",
         "in a skip" if site.depth is None else f"{site.depth:.2f}", site.norm or "-")
        for site in found.values()
    ]  # fmt: skip
    print_table(("path", "kind", "in", "out", "stride", "parameters", "depth", "norm after it"), rows)


def print_plan(config: Config) -> None:
    """What learns when, and how fast, before any training."""
    plan = plan_run(config)
    line = plan.timeline()
    axes_of = {name: value for name, value in plan.axes.items() if name in ("host", "site", "donor") and value != "-"}
    print(", ".join(f"{name} {value}" for name, value in axes_of.items()))
    length = f"{line['epochs']} epochs of {plan.steps_per_epoch} steps"
    print(f"strategy {config.strategy.name}: {length}, {sum(plan.parameters.values()):,} parameters\n")
    every = [name for group in line["groups"].values() for name in group["tensors"]]
    rows: list[tuple[str, ...]] = []
    for name, group in line["groups"].items():
        frozen = _ranges([epoch for epoch, (first, last) in enumerate(group["lr"]) if first == last == 0])
        tensors = ", ".join(covered(group["tensors"], every)) or "none in this network"
        rows.append((name, str(len(group["tensors"])), f"{group['parameters']:,}", frozen or "never", tensors))
    print_table(("group", "number", "parameters", "frozen in epochs", "tensors"), rows)
    auto = config.strategy.tensor_lr
    at_most = "" if auto == "none" else f", at most: {auto} gives each tensor a share of it, each epoch anew"
    print(f"\nlearning rate, in the first and the last step where they differ{at_most}")
    phases = {phase["epoch"]: phase for phase in line["phases"]}
    rows, named = [], ""
    for first, last in stretches(line):
        named = phases[first]["name"] if first in phases else named
        cells = [_rate(group["lr"][first][0], group["lr"][last][1]) for group in line["groups"].values()]
        rows.append((f"{first}-{last}" if last > first else str(first), named, *cells))
    print_table(("epochs", "phase", *line["groups"]), rows)
    print()
    for phase in line["phases"]:
        waits = f", {phase['plateau']}" if phase["plateau"] else ""
        moving = ", ".join(phase["batch_norm_statistics"]) or "none"
        print(f"phase {phase['name']} starts at epoch {phase['epoch']}{waits}; norm statistics move in: {moving}")


def _rate(first: float, last: float) -> str:
    if first == last:
        return f"{first:.3g}" if first else "frozen"
    return f"{first:.3g} to {last:.3g}"


def _ranges(epochs: Sequence[int]) -> str:
    """0, 1, 2, 5 -> '0-2, 5'."""
    found: list[list[int]] = []
    for epoch in epochs:
        if found and found[-1][1] == epoch - 1:
            found[-1][1] = epoch
        else:
            found.append([epoch, epoch])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def print_surgery(config: Config) -> None:
    """What this run's surgery does, before any training: the operation, the parts, step-0 activations and loss."""
    plan = plan_run(config)
    require(bool(plan.grafts), "donor=none puts nothing in, so there is no surgery to show")
    run = plan.build()
    grafted = run.grafted
    print(f"host: {host_line(config.host.name, run.host)}\n")
    if config.host.weights is not None:
        print(f"host weights: {weights.report(config.host, grafted.host, plan.keeps_head)}\n")
    print(grafted)
    for graft, donor in zip(grafted.grafts, run.donors, strict=True):
        print(f"\ndonor at {graft.site.path}: {donor.key}")
        print("".join(f"  {line}\n" for line in about(donor)), end="")
    operation = config.surgery
    print(f"\nchannels: {operation.channel_matching}, bias: {operation.bias}, calibration: {operation.calibrate}")
    images, labels = calibration_images(config, run.images, run.normalization)
    if operation.channel_matching == "project":
        for graft in grafted.grafts:
            left = reconstruction_error(grafted, graft, images)
            print(f"{graft.placed.chain} differs from the intact host by {100 * left:.2g}% of its output's power")
    paths = grafted.watched(plan.sites)
    networks = (grafted.host, grafted.network)
    before, after = (record_activations(network, paths, images, labels, task=run.images.task) for network in networks)
    print(f"\nstep 0 on {len(labels)} training images, in evaluation mode (norms without statistics take the batch's)")
    changed = {path for graft in grafted.grafts for path in graft.placed.replaced}
    rows = []
    for path in paths:
        old, new = before.activations[path], after.activations[path]
        rows.append((path + " *" * (path in changed), f"{old.mean:.3g}", f"{new.mean:.3g}", f"{old.deviation:.3g}",
                     f"{new.deviation:.3g}", f"{100 * old.share_zero:.0f}%", f"{100 * new.share_zero:.0f}%"))  # fmt: skip
    print_table(("output of", "mean: host", "grafted", "deviation: host", "grafted", "zeros: host", "grafted"), rows)
    print(f"\nloss      host {before.loss:.4f}, grafted {after.loss:.4f}")
    print(f"accuracy  host {before.accuracy:.1f}%, grafted {after.accuracy:.1f}%")


def print_similarity(config: Config) -> None:
    """How alike the donor's source and the target are, each measure with its spread over resamples."""
    plan = plan_run(config)
    require(config.exec.similarity.resamples > 0, "exec.similarity.resamples is 0, so there is nothing to measure")
    source = plan.donor.data if plan.grafts else None
    if source is None:
        why = "learns from no images; donor=trained and others do, from donor.data"
        raise UserError(f"donor={config.donor.name} {why}")
    found = cast(dict[str, Any], similarity(plan.build()))  # it has a source and resamples
    numbers = " and ".join(map(str, found["images"]))
    print(f"source {source.name}, target {config.data.name}: {numbers} training images")
    rows = []
    for name, (what, more) in MEANINGS.items():
        cells = [_spread(part.get(name)) for part in (found["fixed"], *found["site"].values())]
        rows.append((what, *cells, more))
    print_table(("measure", "on fixed features", *(f"at {path}" for path in found["site"]), "more alike"), rows)
    seen = found["target test images in source train"]
    near = "not compared nearly" if seen["near"] is None else f"{seen['near']} nearly"
    print(f"\ntarget test images that are in the source's training split: {near}, {seen['exact']} exactly")


def _spread(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['mean']:.3g} ± {value['deviation']:.2g}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need be, numbers to the right; the same in a terminal and in a file."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in head:
        table.add_column(name, justify="left" if name in TEXT_COLUMNS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*[escape(cell) for cell in row])
    Console(highlight=False, width=1000).print(table)  # whatever the terminal: a row cut short tells nothing
