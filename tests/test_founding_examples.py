"""The founding document's three examples, each against a hand-written plain PyTorch loop from the same weights.

torchvision's resnet18 as it is (ImageNet stem, here narrow to be quick), the document's donor
`Conv2d(3, C, kernel_size=7, stride=2, padding=3)` with its bias at `conv1`, Adam, 1e-3. The two faults in the
document's listings are mended in the loops: the second's `is not in`, and the third's optimizer, which is built from
what requires a gradient at the start and so never sees the donor that is unfrozen later.

The loops ask for the fused Adam, as layergraft does: the donor's bias stands in front of a batch norm, which takes it
out again, so its gradient is rounding noise, and Adam scales noise up to full steps. Only the same arithmetic gives
the same bias.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layergraft.data.batches import Batches, BatchSpec
from layergraft.hosts import TorchvisionResNet
from layergraft.hosts.norms import statistics_paths
from layergraft.hosts.sites import find_sites
from layergraft.strategies.phases import make_plan, stage_roles
from layergraft.surgery import Replace, graft
from layergraft.training.backend import Backend
from layergraft.training.fit import fit
from layergraft.training.recipe import Recipe

EPOCHS, WIDTH, UNFREEZE = 4, 8, 2
HOST = TorchvisionResNet("resnet18", width=WIDTH, stem="imagenet")


@pytest.fixture
def start(images):
    """(network with the donor in place, its batches)."""
    data = images(channels=3, size=32)
    torch.manual_seed(1)
    donor = nn.Conv2d(3, WIDTH, kernel_size=7, stride=2, padding=3)
    host = HOST.build(data.shape, data.num_classes, seed=0)
    network = graft(host, [(find_sites(host, data.shape)["conv1"], donor)], Replace(), data.shape).network
    return network, Batches.of(data, BatchSpec(10, shift=2), 0, "cpu")


def layergraft_fit(network, batches, config):
    names = [name for name, _ in network.named_parameters()]
    plan = make_plan(
        config.strategy,
        names,
        statistics_paths(network),
        {**HOST.roles, **stage_roles(["layer1"]), "graft": ["conv1"]},
        EPOCHS,
    )
    fitted = fit(network, plan, batches, Recipe(config.optim, config.schedule), Backend("cpu", "float32"))
    return [point["train/loss"] for point in fitted.curves]


def plain_epoch(network, optimizer, batches, epoch):
    losses = []
    batches.train.set_epoch(epoch)
    for x, y in batches.train:
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def plain_freeze(resnet, batches):
    for param in resnet.conv1.parameters():
        param.requires_grad = False
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, resnet.parameters()), lr=0.001, fused=True)
    resnet.train()
    return [plain_epoch(resnet, optimizer, batches, epoch) for epoch in range(EPOCHS)]


def plain_low_lr(resnet, batches):
    donor = {id(p) for p in resnet.conv1.parameters()}
    rest = [p for p in resnet.parameters() if id(p) not in donor]
    optimizer = torch.optim.Adam(
        [{"params": resnet.conv1.parameters(), "lr": 0.0001}, {"params": rest, "lr": 0.001}], fused=True
    )
    resnet.train()
    return [plain_epoch(resnet, optimizer, batches, epoch) for epoch in range(EPOCHS)]


def plain_hybrid(resnet, batches):
    for name, param in resnet.named_parameters():
        param.requires_grad = any(part in name for part in ("layer2", "layer3", "layer4", "fc"))
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, resnet.parameters()), lr=0.001, fused=True)
    resnet.train()
    for module in (resnet.bn1, *resnet.layer1.modules()):  # frozen: their statistics stay, too
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    losses = []
    for epoch in range(EPOCHS):
        if epoch == UNFREEZE:
            for param in resnet.conv1.parameters():
                param.requires_grad = True
            optimizer.add_param_group({"params": resnet.conv1.parameters(), "lr": 0.0001})
        losses.append(plain_epoch(resnet, optimizer, batches, epoch))
    return losses


@pytest.mark.parametrize("strategy", ["freeze", "low_lr", "hybrid"])
def test_same_losses_and_weights_as_a_plain_loop(strategy, start, config):
    network, batches = start
    plain = copy.deepcopy(network)
    overrides = [f"strategy={strategy}", "optim=adam", "optim.lr=1e-3", f"schedule.epochs={EPOCHS}"]
    if strategy == "hybrid":
        overrides.append(f"strategy.phases.thaw.epoch={UNFREEZE}")
    before = plain.conv1.weight.clone()

    losses = layergraft_fit(network, batches, config(*overrides))
    expected = globals()[f"plain_{strategy}"](plain, batches)

    assert losses == pytest.approx(expected, abs=1e-6)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(
            network.state_dict()[name], tensor, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert torch.equal(plain.conv1.weight, before) == (strategy == "freeze")  # the comparison went over an unfreeze
