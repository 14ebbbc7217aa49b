"""REPAIR's ladder for grafts: what stale statistics cost, what re-estimation and adapters bring back, what training does.

    python benchmarks/repair_ladder.py DATA.npz [--host resnet20] [--width 16] [--epochs 10] [--seeds 3] [--out FILE.md]

Two hosts are trained alike from different starts; one gives its layer to the other, at each site. DATA.npz has MedMNIST's
layout: uint8 {train,val,test}_images (N, H, W, C) and {train,val,test}_labels (N, 1). Accuracies are of the test split.
Source of the ladder: Jordan et al., REPAIR, 2022, who merge whole networks; here a single layer is foreign.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch

from layergraft import surgery
from layergraft.config.schema import Device, Precision
from layergraft.config.training_schema import OptimSpec, ScheduleSpec
from layergraft.data.batches import Batches, BatchSpec
from layergraft.data.image_data import ImageData, Split
from layergraft.hosts import CifarResNet
from layergraft.hosts.norms import statistics_paths
from layergraft.hosts.sites import find_sites, resolve
from layergraft.networks.network_cache import ALL_TRAINS
from layergraft.strategies.phases import make_plan
from layergraft.surgery import Replace
from layergraft.training.backend import Backend
from layergraft.training.fit import fit
from layergraft.training.recipe import Recipe

RUNGS = {
    "stale": Replace(),
    "re-estimated": Replace(calibrate="batch_norm"),
    "least squares": Replace(channel_matching="project"),
    "least squares, re-estimated": Replace(channel_matching="project", calibrate="batch_norm"),
}


def load(path):
    file = np.load(path)

    def split(name):
        images = file[f"{name}_images"]
        return Split(
            np.ascontiguousarray(images.transpose(0, 3, 1, 2)), file[f"{name}_labels"].reshape(-1).astype(np.int64)
        )

    train, val, test = map(split, ("train", "val", "test"))
    return ImageData(train, val, test, int(train.y_N.max()) + 1, Path(path).name)


def trained(network, data, epochs, lr, backend, seed):
    plan = make_plan(ALL_TRAINS, [n for n, _ in network.named_parameters()], statistics_paths(network), {}, epochs)
    batches = Batches.of(data, BatchSpec(128, shift=2), seed, backend.device)
    recipe = Recipe(OptimSpec("adamw", lr), ScheduleSpec("cosine", epochs))
    return fit(network.train(), plan, batches, recipe, backend).test["acc"]


def accuracy(network, data, backend):
    network = network.eval().to(backend.device)
    with torch.no_grad():
        batches = Batches.of(data, BatchSpec(128, shift=0), 0, backend.device).test
        return 100 * sum((network(x).argmax(1) == y).sum().item() for x, y in batches) / len(data.test)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--host", default="resnet20")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data, backend = load(arguments.data), Backend.resolve(Device.auto, Precision.float32)
    spec = CifarResNet(arguments.host, width=arguments.width)
    images = torch.cat([x for x, _ in list(Batches.of(data, BatchSpec(128, shift=0), 0, "cpu").train)[:8]]).to(
        backend.device
    )
    found: dict[tuple[str, str], list[float]] = {}
    intact = []
    for seed in range(arguments.seeds):
        hosts = [spec.build(data.shape, data.num_classes, seed=2 * seed + number) for number in (0, 1)]
        parents = [trained(network, data, arguments.epochs, 3e-3, backend, seed) for network in hosts]
        intact.append(parents[0])
        host, other = (network.eval().to(backend.device) for network in hosts)
        sites = find_sites(host, data.shape)
        for kind, where in [("conv", 0.0), ("conv", 0.5), ("conv", 1.0), ("block", 0.5)]:
            site = resolve(sites, where, spec.name, kind)
            for rung, operation in RUNGS.items():
                made = surgery.graft(host, [(site, other.get_submodule(site.path))], operation, data.shape)
                made = surgery.calibrated(made, images, operation)
                found.setdefault((site.path, rung), []).append(accuracy(made.network, data, backend))
                if rung == "re-estimated":
                    tuned = trained(made.network, data, 2, 1e-3, backend, seed)
                    found.setdefault((site.path, "re-estimated, then 2 epochs"), []).append(tuned)

    rungs = [*RUNGS, "re-estimated, then 2 epochs"]
    paths = list(dict.fromkeys(path for path, _ in found))
    lines = [f"# REPAIR's ladder: {spec.name}, width {spec.width}, {len(data.train)} training images of {data.fingerprint}",
             "", f"Test accuracy in percent, mean (standard deviation) over n = {arguments.seeds} pairs of hosts, {arguments.epochs} epochs each; intact {said(intact)}.",
             f"Device: {backend.device}, torch {torch.__version__}.", "", f"| site | {' | '.join(rungs)} |", f"|---|{'---|' * len(rungs)}"]  # fmt: skip
    lines += [f"| {path} | {' | '.join(said(found[path, rung]) for rung in rungs)} |" for path in paths]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def said(values):
    spread = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
