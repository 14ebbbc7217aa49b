"""Hosts: torchvision's networks and CIFAR's, at any width, the same for a seed whatever else is drawn."""

import pytest
import torch
import torchvision

from conftest import HOSTS
from layergraft.config.registry import validate
from layergraft.data.image_data import ImageData, Split
from layergraft.errors import UserError
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.resnet_blocks import PadShortcut, group_norm, on_meta
from layergraft.hosts.resnets import NETWORKS

IMAGE = (3, 64, 64)


@pytest.mark.parametrize("name", NETWORKS)
def test_full_width_has_torchvisions_names_and_shapes(name):
    ours = on_meta(lambda: TorchvisionResNet(name).build(IMAGE, 1000, seed=0)).state_dict()
    theirs = on_meta(lambda: getattr(torchvision.models, name)(weights=None)).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_full_width_computes_what_torchvision_does(name):
    ours = TorchvisionResNet(name).build(IMAGE, 1000, seed=0)
    theirs = getattr(torchvision.models, name)(weights=None)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, *IMAGE)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_initial_weights_have_torchvisions_scale():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None, num_classes=10).state_dict()
    for name, tensor in TorchvisionResNet("resnet18").build(IMAGE, 10, seed=0).state_dict().items():
        if tensor.numel() > 1000:
            assert tensor.std().item() == pytest.approx(theirs[name].std().item(), rel=0.1), name
        elif "bn" in name:
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(
    "name, millions", [("resnet20", 0.27), ("resnet32", 0.46), ("resnet56", 0.85), ("resnet110", 1.7)]
)
def test_cifar_networks_have_the_papers_size(name, millions):
    """He et al. 2016, table 6."""
    network = CifarResNet(name).build((3, 32, 32), 10, seed=0)
    layers = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(layers) == int(name.removeprefix("resnet"))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.03 if millions > 1 else 0.01
    )


def test_a_skip_without_parameters():
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    y = PadShortcut(2, 2)(x)
    assert y.shape == (1, 4, 2, 2) and torch.equal(y[:, 1:3], x[:, :, ::2, ::2]) and not y[:, [0, 3]].any()


def test_small_images_have_a_small_stem_unless_told():
    small, large = (TorchvisionResNet("resnet34", width=4).build((1, n, n), 5, seed=0) for n in (32, 64))
    assert (small.conv1.kernel_size, small.conv1.stride, small.layer4[2].conv2.out_channels) == ((3, 3), (1, 1), 32)
    assert (large.conv1.kernel_size, large.conv1.stride) == ((7, 7), (2, 2))
    told = TorchvisionResNet("resnet18", width=4, stem="imagenet").build((1, 32, 32), 5, seed=0)
    assert told.conv1.kernel_size == (7, 7)
    named = TorchvisionResNet("resnet18", weights="DEFAULT").build((3, 32, 32), 5, seed=0)
    assert named.conv1.kernel_size == (7, 7)


@pytest.mark.parametrize("spec", HOSTS, ids=lambda spec: spec.name)
def test_without_skips_nothing_is_added(spec):
    plain = on_meta(lambda: type(spec)(**{**vars(spec), "skips": False}).build((3, 16, 16), 5, seed=0))
    assert not any("downsample" in name for name, _ in plain.named_modules())
    plain = type(spec)(**{**vars(spec), "skips": False}).build((3, 16, 16), 5, seed=0).eval()
    with torch.no_grad():
        list(plain.layer2.children())[-1].conv2.weight.zero_()  # its block then gives a constant, whatever comes in
        one, two = (plain.layer2(torch.randn(1, *shape, generator=torch.Generator().manual_seed(i)))
                    for i, shape in enumerate([(plain.layer2[0].conv1.in_channels, 8, 8)] * 2))  # fmt: skip
    assert torch.equal(one, two)


@pytest.mark.parametrize("spec", HOSTS, ids=lambda spec: spec.name)
def test_group_norm_has_no_statistics(spec):
    network = type(spec)(**{**vars(spec), "norm": "group"}).build((3, 16, 16), 5, seed=0)
    assert not list(network.buffers())
    assert network(torch.randn(1, 3, 16, 16)).isfinite().all()


@pytest.mark.parametrize("channels, groups", [(4, 1), (16, 1), (64, 4), (24, 1), (40, 2), (56, 2), (512, 32)])
def test_group_norm_groups_divide_the_channels(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_seed_decides_the_weights_and_the_head_has_its_own_stream():
    spec = TorchvisionResNet("resnet18", width=4)
    state = torch.get_rng_state()
    first, second, other = (spec.build((3, 16, 16), n, seed=s) for n, s in ((5, 0), (7, 0), (5, 1)))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert torch.equal(first.layer4[1].conv2.weight, second.layer4[1].conv2.weight)  # another number of classes
    assert not torch.equal(first.conv1.weight, other.conv1.weight) and not torch.equal(first.fc.weight, other.fc.weight)


@pytest.mark.parametrize(
    "spec, message",
    [
        (TorchvisionResNet("resnet19"), "unknown torchvision_resnet host 'resnet19'; did you mean 'resnet18'"),
        (
            TorchvisionResNet("resnext50_32x4d", width=8),
            "host.width is 8; resnext50_32x4d needs a multiple of 16 for its 32",
        ),
        (TorchvisionResNet("resnet18", norm="layer"), "unknown host.norm 'layer'"),
        (TorchvisionResNet("resnet18", in_channels=4), "host.in_channels is 4; it must be 1, 3 or null"),
        (CifarResNet("resnet21"), "unknown cifar_resnet host 'resnet21'; did you mean 'resnet32'"),
        (CifarResNet("resnet20", weights="DEFAULT"), "torchvision has no weights for resnet20"),
    ],
)
def test_what_cannot_be_is_said(spec, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        validate(spec, "host")


def test_images_are_given_the_channels_that_the_host_takes(images):
    grey, colour = images(channels=1), images(channels=3)
    three = grey.with_channels(3)
    assert three.shape == (3, 16, 16) and (three.test.x_NCHW == grey.test.x_NCHW).all()
    one = colour.with_channels(1)
    assert one.shape == (1, 16, 16)
    assert abs(one.train.x_NCHW[:, 0].astype(float) - colour.train.x_NCHW.mean(1)).max() <= 0.5
    assert grey.with_channels(None) is grey and colour.with_channels(3) is colour
    four = Split(colour.train.x_NCHW.repeat(2, 1)[:, :4], colour.train.y_N)
    with pytest.raises(UserError, match="host.in_channels is 3, but the images have 4 channels"):
        ImageData(four, four, four, 4, "four").with_channels(3)
