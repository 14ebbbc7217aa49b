"""REPAIR's ladder on a trained small host: a graft with stale statistics, re-estimated ones, and fine-tuned.

Jordan et al. 2022 found for merged networks: stale statistics ruin the network, re-estimation brings most of it back
without a gradient, fine-tuning the rest. Here the graft is the layer of another network trained in the same way.
"""

import torch

from conftest import CPU
from layergraft import surgery
from layergraft.config.training_schema import OptimSpec, ScheduleSpec
from layergraft.data import Digits
from layergraft.data.batches import Batches, BatchSpec
from layergraft.hosts import CifarResNet
from layergraft.hosts.norms import statistics_paths
from layergraft.hosts.sites import find_sites
from layergraft.networks.network_cache import ALL_TRAINS
from layergraft.strategies.phases import make_plan
from layergraft.surgery import Replace
from layergraft.training.fit import fit
from layergraft.training.recipe import Recipe

DATA = Digits(classes=list(range(10))).load(0)
HOST = CifarResNet("resnet8", width=8)
SITE = "layer2.0"


def trained(network, epochs, lr=5e-3):
    plan = make_plan(ALL_TRAINS, [n for n, _ in network.named_parameters()], statistics_paths(network), {}, epochs)
    batches = Batches.of(DATA, BatchSpec(50, shift=1), 0, "cpu")
    return fit(network.train(), plan, batches, Recipe(OptimSpec(lr=lr), ScheduleSpec("cosine", epochs)), CPU).test[
        "acc"
    ]


def accuracy(network):
    batches = Batches.of(DATA, BatchSpec(50, shift=0), 0, "cpu").test
    with torch.no_grad():
        return 100 * sum((network.eval()(x).argmax(1) == y).sum().item() for x, y in batches) / len(DATA.test)


def test_stale_then_re_estimated_then_fine_tuned():
    host, other = (HOST.build(DATA.shape, 10, seed=seed) for seed in (0, 1))
    before = trained(host, 12)
    trained(other, 12)
    images = torch.cat([x for x, _ in Batches.of(DATA, BatchSpec(50, shift=0), 0, "cpu").train])
    site = find_sites(host, DATA.shape)[SITE]
    ladder = {}
    for calibrate in ("none", "batch_norm"):
        spec = Replace(calibrate=calibrate)
        made = surgery.calibrated(
            surgery.graft(host, [(site, other.get_submodule(SITE))], spec, DATA.shape), images, spec
        )
        ladder[calibrate] = accuracy(made.network)
    tuned = trained(made.network, 6, lr=2e-3)
    assert before > 93, before
    assert ladder["none"] < before - 10, (before, ladder)  # a foreign block does harm
    assert ladder["batch_norm"] > ladder["none"] + 5, (before, ladder)  # its statistics were a part of that
    assert tuned > ladder["batch_norm"] and tuned > before - 3, (before, ladder, tuned)  # and training mends it
    print(f"host {before:.1f}, stale {ladder['none']:.1f}, re-estimated {ladder['batch_norm']:.1f}, tuned {tuned:.1f}")
