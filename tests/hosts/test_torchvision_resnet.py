"""Hosts: torchvision's networks, at any width, the same for a seed whatever else is drawn."""

import pytest
import torch
import torchvision

from layergraft.errors import UserError
from layergraft.hosts import TorchvisionResNet, sites


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_full_width_is_torchvisions_own(name):
    ours = TorchvisionResNet(name).build((3, 16, 16), 1000, seed=0)
    theirs = getattr(torchvision.models, name)(weights=None)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_initial_weights_have_torchvisions_scale():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None, num_classes=10).state_dict()
    for name, tensor in TorchvisionResNet("resnet18").build((3, 16, 16), 10, seed=0).state_dict().items():
        if tensor.numel() > 1000:
            assert tensor.std().item() == pytest.approx(theirs[name].std().item(), rel=0.1), name
        elif "bn" in name:
            assert torch.equal(tensor, theirs[name]), name


def test_narrow_small_images():
    host = TorchvisionResNet("resnet34", width=4, stem="small").build((1, 16, 16), 5, seed=0)
    assert host(torch.randn(2, 1, 8, 8)).shape == (2, 5)
    assert (host.conv1.kernel_size, host.conv1.stride, host.layer4[2].conv2.out_channels) == ((3, 3), (1, 1), 32)


def test_seed_decides_the_weights_and_the_head_has_its_own_stream():
    spec = TorchvisionResNet("resnet18", width=4)
    state = torch.get_rng_state()
    first, second, other = spec.build((3, 16, 16), 5, seed=0), spec.build((3, 16, 16), 7, seed=0), spec.build((3, 16, 16), 5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert torch.equal(first.layer4[1].conv2.weight, second.layer4[1].conv2.weight)  # another number of classes
    assert not torch.equal(first.conv1.weight, other.conv1.weight) and not torch.equal(first.fc.weight, other.fc.weight)


@pytest.mark.parametrize(
    "name, early, middle, late",
    [
        ("resnet18", "conv1", "layer2.1.conv2", "layer4.1.conv2"),
        ("resnet34", "conv1", "layer3.0.conv2", "layer4.2.conv2"),
    ],
)
def test_relative_sites(name, early, middle, late):
    host = TorchvisionResNet(name, width=4).build((3, 16, 16), 5, seed=0)
    assert [sites.resolve(host, site, name) for site in ("early", "middle", "late")] == [early, middle, late]


def test_every_convolution_is_a_site():
    host = TorchvisionResNet("resnet18", width=4).build((3, 16, 16), 5, seed=0)
    assert len(sites.convolutions(host)) == 20 and len(sites.main_path(host)) == 17
    assert sites.resolve(host, "layer3.0.downsample.0", "resnet18") == "layer3.0.downsample.0"
    with pytest.raises(UserError, match="unknown site in resnet18: 'layer3'.*There are: early, middle, late, conv1"):
        sites.resolve(host, "layer3", "resnet18")
