"""Sites: every convolution, block and stage of every host; relative ones mean the same in every depth."""

import pytest
import torch

from conftest import HOSTS
from layergraft.errors import UserError
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.sites import find_sites, resolve

IMAGE = (3, 32, 32)


@pytest.mark.parametrize("spec", HOSTS, ids=lambda spec: spec.name)
def test_every_convolution_block_and_stage_with_shapes_as_they_really_are(spec):
    network = spec.build(IMAGE, 5, seed=0).eval()
    sites = find_sites(network, IMAGE)
    convolutions = [path for path, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert [path for path, site in sites.items() if site.kind == "conv"] == convolutions
    stages = [name for name, _ in network.named_children() if name.startswith("layer")]
    assert [path for path, site in sites.items() if site.kind == "stage"] == stages
    blocks = [f"{stage}.{name}" for stage in stages for name, _ in network.get_submodule(stage).named_children()]
    assert [path for path, site in sites.items() if site.kind == "block"] == blocks

    seen = {}
    for path in sites:
        network.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: seen.update({path: (args[0].shape[1:], output.shape[1:])})
        )
    network(torch.randn(2, *IMAGE))
    assert {path: (site.in_shape, site.out_shape) for path, site in sites.items()} == seen
    for path, site in sites.items():
        assert site.num_parameters == sum(p.numel() for p in network.get_submodule(path).parameters())
        if site.kind == "conv":
            assert network.get_submodule(site.norm).num_features == site.out_shape[0]


def test_norms_stand_where_torchvision_has_them():
    sites = find_sites(TorchvisionResNet("resnet50", width=4).build(IMAGE, 5, seed=0), IMAGE)
    assert sites["conv1"].norm == "bn1" and sites["layer1.0.conv3"].norm == "layer1.0.bn3"
    assert sites["layer2.0.downsample.0"].norm == "layer2.0.downsample.1" and sites["layer1.0"].norm is None


def test_the_network_is_left_as_it_was():
    network = TorchvisionResNet("resnet18", width=4).build(IMAGE, 5, seed=0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    find_sites(network, IMAGE)
    assert network.training and all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    "spec, kind, wanted",
    [
        (
            TorchvisionResNet("resnet18", width=4),
            "conv",
            ["conv1", "layer2.1.conv2", "layer4.1.conv2", "layer1.1.conv2"],
        ),
        (
            TorchvisionResNet("resnet34", width=4),
            "conv",
            ["conv1", "layer3.0.conv2", "layer4.2.conv2", "layer2.0.conv2"],
        ),
        (
            TorchvisionResNet("resnet50", width=4),
            "conv",
            ["conv1", "layer3.0.conv3", "layer4.2.conv3", "layer2.0.conv3"],
        ),
        (CifarResNet("resnet20"), "conv", ["conv1", "layer2.1.conv1", "layer3.2.conv2", "layer1.1.conv2"]),
        (TorchvisionResNet("resnet18", width=4), "block", ["layer1.0", "layer3.0", "layer4.1", "layer2.0"]),
        (CifarResNet("resnet8"), "block", ["layer1.0", "layer2.0", "layer3.0", "layer1.0"]),
        (CifarResNet("resnet20"), "stage", ["layer1", "layer2", "layer3", "layer1"]),
    ],
)
def test_relative_sites(spec, kind, wanted):
    sites = find_sites(spec.build(IMAGE, 5, seed=0), IMAGE)
    assert [resolve(sites, site, spec.name, kind).path for site in ("early", "middle", "late", 0.25)] == wanted
    for ours, number in (("early", 0.0), ("middle", 0.5), ("late", 1.0)):
        assert resolve(sites, ours, spec.name, kind) == resolve(sites, number, spec.name, kind)


def test_depth_runs_from_first_to_last_within_each_kind():
    sites = find_sites(TorchvisionResNet("resnet101", width=4).build(IMAGE, 5, seed=0), IMAGE)
    for kind in ("conv", "block", "stage"):
        depths = [site.depth for site in sites.values() if site.kind == kind and site.depth is not None]
        assert depths == sorted(depths) and (depths[0], depths[-1]) == (0.0, 1.0)
    assert sites["layer1.0.downsample.0"].depth is None


def test_what_is_no_site_is_said():
    sites = find_sites(TorchvisionResNet("resnet18", width=4).build(IMAGE, 5, seed=0), IMAGE)
    with pytest.raises(
        UserError, match="unknown site in resnet18: 'layer5'.*There are: early, middle, late, 0.0 to 1.0, conv1"
    ):
        resolve(sites, "layer5", "resnet18")
    with pytest.raises(UserError, match="site=1.5 is not a relative depth"):
        resolve(sites, 1.5, "resnet18")
