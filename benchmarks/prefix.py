"""Training behind a frozen prefix whose output is kept, over the same without

Images are not moved or mirrored, so an image gives the same in every epoch; what comes out is the same bit for bit, and the
benchmark stops where it is not. All of `fit`, what is kept made within it, 20 epochs of 1,280 images of 32 x 32.
"""

from __future__ import annotations

import copy

import torch
from measure import Figure, at_most, by_turns
from run_time import backend_here, noise

from layergraft.config.training_schema import OptimSpec, PhaseSpec, ScheduleSpec, StrategySpec
from layergraft.data.batches import Batches, BatchSpec
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.norms import statistics_paths
from layergraft.strategies.phases import make_plan
from layergraft.training.fit import fit
from layergraft.training.recipe import Recipe

EPOCHS, IMAGES, BATCH = 20, 1280, 128
STEM = ["conv1", "bn1"]
HOSTS = [CifarResNet("resnet20"), TorchvisionResNet("resnet18", width=16, stem="small")]
STAGES = {"resnet20": ["layer1", "layer2", "layer3"], "resnet18": ["layer1", "layer2", "layer3", "layer4"]}


def figures(repeats: int = 2) -> list[Figure]:
    data, found = noise((3, 32, 32), IMAGES), []
    torch.backends.cudnn.deterministic = True  # else two trainings on a GPU differ in any case
    for host in HOSTS:
        start = host.build(data.shape, data.num_classes, 0)
        for stages, goal in ((STAGES[host.name], 0.1), (["layer1", "layer2"], 0.6)):
            groups = {"still": [*STEM, *stages], "rest": [".*"]}
            phases = {"only": PhaseSpec(0, train={"rest": 1.0}, freeze=["still"])}
            names = [name for name, _ in start.named_parameters()]
            strategy = StrategySpec("prefix", groups=groups, phases=phases)
            plan = make_plan(strategy, names, statistics_paths(start), host.roles, EPOCHS)
            ended: dict[str, torch.nn.Module] = {}

            def train(name: str, gib: float | None, start=start, plan=plan, ended=ended) -> None:
                network, backend = copy.deepcopy(start), backend_here(features_gib=gib)
                recipe = Recipe(OptimSpec("adam", 1e-3, batch_size=BATCH), ScheduleSpec(epochs=EPOCHS))
                fitted = fit(network, plan, Batches.of(data, BatchSpec(BATCH), 0, backend.device), recipe, backend)
                if bool(fitted.prefixes) != (gib is None):
                    raise RuntimeError(f"what was kept: {fitted.prefixes}")
                ended[name] = network

            ways = {"plain": lambda train=train: train("plain", 0.0), "kept": lambda train=train: train("kept", None)}
            seconds = by_turns(ways, repeats, warm_up=False)
            states = (network.state_dict().values() for network in ended.values())
            if not all(torch.equal(a, b) for a, b in zip(*states, strict=True)):
                raise RuntimeError("the same training came out otherwise")
            through = "head only" if stages == STAGES[host.name] else f"frozen through {stages[-1]}"
            found.append(
                at_most(f"{host.name}, width {host.width}, {through}", seconds["kept"], seconds["plain"], goal)
            )
    return found
