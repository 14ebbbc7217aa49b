"""Learning rates by tensor and L2-SP, against references written by hand."""

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from conftest import CPU
from layergraft.config.training_schema import OptimSpec, PhaseSpec, ScheduleSpec, StrategySpec
from layergraft.data.batches import Batches, BatchSpec
from layergraft.hosts import CifarResNet
from layergraft.hosts.norms import norm_paths, statistics_paths
from layergraft.strategies.phases import make_plan
from layergraft.training import gradients
from layergraft.training.fit import fit
from layergraft.training.recipe import Recipe

HOST = CifarResNet("resnet8", width=4, norm="group")
ROLES = HOST.roles | {"graft": ["layer2.0.conv1"], "adapter": []}


def made(images, strategy, epochs):
    data = images(channels=1, size=8)
    network = HOST.build(data.shape, data.num_classes, seed=0)
    names = [name for name, _ in network.named_parameters()]
    plan = make_plan(strategy, names, statistics_paths(network), ROLES | {"norm": norm_paths(network)}, epochs)
    return network, plan, Batches.of(data, BatchSpec(5), 0, "cpu")


def reference_weights(network, loader, chosen):
    """`get_lr_weights` of the authors' repository, cifar10/main.py, in its own words; their dict keeps the largest as 1."""
    sums = {name: [] for name in chosen}
    for x, y in itertools.islice(loader, 5):
        loss = F.cross_entropy(network(x), y)
        grads = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        for (name, param), grad in zip(network.named_parameters(), grads, strict=True):
            if name not in chosen:
                continue
            sums[name].append(torch.norm(grad).item() / torch.norm(param).item())
    averages = {name: np.array(values).mean(0) for name, values in sums.items()}
    return {name: value / max(averages.values()) for name, value in averages.items()}


def test_automatic_rates_train_as_the_reference_does(images, config):
    """Plain SGD, for which the reference's new optimizer each epoch is no different from one that is kept."""
    strategy = config("strategy=auto_rgn", "schedule.epochs=3").strategy
    network, plan, batches = made(images, strategy, 3)
    theirs, _, _ = made(images, strategy, 3)
    chosen = [name for name in plan.groups["rest"]]
    for epoch in range(3):
        batches.train.set_epoch(epoch)
        weights = reference_weights(theirs, batches.train, chosen)
        optimizer = torch.optim.SGD([{"params": [theirs.get_parameter(n)], "lr": 0.1 * weights[n]} for n in chosen])
        batches.train.set_epoch(epoch)
        for x, y in batches.train:
            loss = F.cross_entropy(theirs(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    fit(network, plan, batches, Recipe(OptimSpec("sgd", 0.1, momentum=0.0, batch_size=5), ScheduleSpec(epochs=3)), CPU)
    moved = 0
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor, rtol=0, atol=2e-6, msg=name)
        moved += not torch.equal(tensor, made(images, strategy, 3)[0].state_dict()[name])
    assert moved > 3


def test_rgn_weights_by_hand():
    parameters = {
        "a": torch.tensor([3.0, 4.0]),
        "b": torch.tensor([1.0]),
        "gate": torch.tensor(0.0),
        "still": torch.zeros(2),
    }
    grads = [
        {"a": torch.tensor([0.0, 5.0]), "b": torch.tensor([4.0]), "gate": torch.tensor(1.0), "still": torch.zeros(2)},
        {"a": torch.tensor([15.0, 0.0]), "b": torch.tensor([0.0]), "gate": torch.tensor(1.0), "still": torch.zeros(2)},
    ]  # a: (5 + 15) / 2 / 5 = 2; b: (4 + 0) / 2 / 1 = 2
    assert gradients.relative_norms(grads, parameters) == {"a": 2.0, "b": 2.0, "gate": float("inf"), "still": 0.0}
    assert gradients.rgn_weights(grads, parameters) == {"a": 1.0, "b": 1.0, "gate": 1.0, "still": 0.0}


def test_a_gate_that_opens_does_not_slow_the_others_down():
    parameters = {"a": torch.tensor([2.0]), "gate": torch.tensor(1e-6)}
    grads = [{"a": torch.tensor([1.0]), "gate": torch.tensor(1.0)}]
    assert gradients.rgn_weights(grads, parameters) == {"a": 1.0, "gate": 1.0}


def test_measuring_gradients_moves_nothing():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batches = [(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))] * 2
    grads = gradients.measured(network, batches, dict(network.named_parameters()))
    assert len(grads) == 2 and all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_l2_sp_is_the_reference_penalty(images):
    """Omega = alpha/2 ||w_S - w0||^2 + beta/2 ||w_new||^2, written into the loss of a plain loop."""
    alpha, beta = 0.1, 0.01
    strategy = StrategySpec("s", groups={"graft": ["graft"], "rest": [".*"]}, l2_sp={"graft": alpha},
                            weight_decay={"rest": beta}, phases={"p": PhaseSpec(0, {"graft": 1.0, "rest": 1.0})})  # fmt: skip
    network, plan, batches = made(images, strategy, 3)
    theirs, _, _ = made(images, strategy, 3)
    start = {name: parameter.detach().clone() for name, parameter in theirs.named_parameters()}
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(3):
        batches.train.set_epoch(epoch)
        for x, y in batches.train:
            loss = F.cross_entropy(theirs(x), y)
            for name, parameter in theirs.named_parameters():
                if name.startswith("layer2.0.conv1"):
                    loss = loss + alpha / 2 * (parameter - start[name]).square().sum()
                else:
                    loss = loss + beta / 2 * parameter.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    fit(network, plan, batches, Recipe(OptimSpec("sgd", 0.05, batch_size=5), ScheduleSpec(epochs=3)), CPU)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor, rtol=0, atol=2e-6, msg=name)


def test_the_anchor_holds_the_donor(images, config):
    """The stronger it is drawn back, the less far it goes; the weights it starts from are what it is drawn to."""
    distances = []
    for alpha in (0.0, 0.1, 10.0):
        strategy = config("strategy=l2_sp", f"strategy.l2_sp.graft={alpha}", "schedule.epochs=3").strategy
        network, plan, batches = made(images, strategy, 3)
        start = network.get_parameter("layer2.0.conv1.weight").detach().clone()
        fit(network, plan, batches, Recipe(OptimSpec("sgd", 0.05, batch_size=5), ScheduleSpec(epochs=3)), CPU)
        distances.append((network.get_parameter("layer2.0.conv1.weight") - start).norm().item())
    assert distances[0] > distances[1] > distances[2] > 0
