"""Layers cut out of files: convolution, stem, block, stage, whatever the file; and files that will not do."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from conftest import CPU, place_at
from layergraft.donors import ExtractedDonor
from layergraft.donors.donor_cache import get_or_create
from layergraft.errors import UserError
from layergraft.hosts import CifarResNet, TorchvisionResNet

HOST = TorchvisionResNet("resnet50", width=4, stem="imagenet")
IMAGE = (3, 32, 32)


@pytest.fixture(scope="module")
def source():
    """A network in which every tensor is different from its start."""
    network = HOST.build(IMAGE, 5, seed=1)
    with torch.no_grad():
        for number, tensor in enumerate(network.state_dict().values()):
            tensor.add_(number + 1)
    return network


@pytest.fixture
def file(source, tmp_path):
    torch.save({"state_dict": {f"model.{name}": t for name, t in source.state_dict().items()}}, tmp_path / "net.ckpt")
    return str(tmp_path / "net.ckpt")


@pytest.mark.parametrize("path", ["conv1", "layer2.0.downsample.0", "layer1.0", "layer3.1", "layer4.0", "layer2"])
def test_a_layer_by_path_is_that_layer(path, file, source, tmp_path):
    slot = place_at(HOST, path, IMAGE)
    donor = get_or_create(ExtractedDonor(path=file, layer=path), slot, CPU, tmp_path)
    assert donor.architecture == slot.layer
    theirs = source.get_submodule(path).state_dict()
    assert donor.layer.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in donor.layer.state_dict().items())
    assert donor.provenance["layer"] == path and donor.provenance["stripped"] == ["model."]
    assert donor.provenance["num_others"] == len(source.state_dict()) - len(theirs)
    here = get_or_create(ExtractedDonor(path=file), slot, CPU, tmp_path)  # no layer named: the site's own path
    assert here.provenance["layer"] == path


def test_a_stem_is_a_convolution_with_the_norm_beside_it(file, source, tmp_path):
    for conv, norm in (
        ("conv1", "bn1"),
        ("layer1.0.conv2", "layer1.0.bn2"),
        ("layer2.0.downsample.0", "layer2.0.downsample.1"),
    ):
        donor = get_or_create(ExtractedDonor(path=file, kind="stem"), place_at(HOST, conv, IMAGE), CPU, tmp_path)
        assert torch.equal(donor.layer.conv.weight, source.get_submodule(conv).weight)
        assert torch.equal(donor.layer.norm.running_mean, source.get_submodule(norm).running_mean)


def test_torchvisions_state_dict_and_a_layer_saved_alone(tmp_path):
    theirs = torchvision.models.resnet18(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    slot = place_at(TorchvisionResNet("resnet18"), "layer1.0.conv1")
    donor = get_or_create(ExtractedDonor(path=str(tmp_path / "resnet18.pth")), slot, CPU, tmp_path)
    assert torch.equal(donor.layer.weight, theirs.layer1[0].conv1.weight)
    layer = torch.nn.Conv2d(3, 8, 7, stride=2, padding=3)  # the founding document's donor
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    alone = get_or_create(
        ExtractedDonor(path=str(tmp_path / "layer.pt")), place_at(HOST, "conv1", IMAGE), CPU, tmp_path
    )
    assert (
        torch.equal(alone.layer.bias, layer.bias) and alone.architecture.stride == 2 and alone.architecture.padding == 3
    )


def test_one_of_our_own_donors_can_be_read_again(tmp_path):
    slot = place_at(CifarResNet("resnet20"), "layer2.0")
    block = slot.layer.build()
    save_file(block.state_dict(), tmp_path / "donor.safetensors")
    donor = get_or_create(ExtractedDonor(path=str(tmp_path / "donor.safetensors")), slot, CPU, tmp_path)
    assert donor.architecture == slot.layer and donor.architecture.shortcut == "pad"


def test_the_key_is_the_contents_not_the_place_of_the_file(file, tmp_path):
    slot = place_at(HOST, "conv1", IMAGE)
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "net.ckpt"
    other.write_bytes(Path(file).read_bytes())
    keys = {
        get_or_create(ExtractedDonor(path=p, seed=seed), slot, CPU, tmp_path).provenance["key"]
        for p, seed in ((file, 0), (str(other), 1))
    }
    assert len(keys) == 1


BAD = {
    "missing": (lambda s: s.pop("layer1.0.bn2.weight"), "layer1.0", "missing: bn2.weight"),
    "extra": (lambda s: s.update({"layer1.0.se.weight": torch.zeros(1)}), "layer1.0", "not part of it: se.weight"),
    "shape": (
        lambda s: s.update({"layer1.0.bn2.weight": torch.zeros(3)}),
        "layer1.0",
        r"bn2.weight \(3,\) where \(4,\)",
    ),
    "no statistics": (
        lambda s: [s.pop(n) for n in list(s) if "running" in n or "tracked" in n],
        "layer1.0",
        "missing: bn1.running_mean",
    ),
    "nan": (
        lambda s: s["conv1.weight"].view(-1)[:1].fill_(torch.inf),
        "conv1",
        "weight has 1 values of 588 that are NaN",
    ),
    "empty": (
        lambda s: s.update({"conv1.weight": torch.zeros(0, 3, 7, 7)}),
        "conv1",
        r"weight has the shape \(0, 3, 7, 7\): it is empty",
    ),
    "zero": (lambda s: s["conv1.weight"].zero_(), "conv1", "is empty: all weights of its convolutions are zero"),
    "linear": (lambda s: None, "fc", r"is no square 2-D convolution: its weight has the shape \(5, 128\)"),
    "norm": (lambda s: None, "bn1", "is no square 2-D convolution"),
    "unknown": (lambda s: None, "layer1.9", "unknown layer of .* in donor.layer: 'layer1.9'; did you mean 'layer1.2'"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_will_not_do(what, source, tmp_path):
    change, layer, message = BAD[what]
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match=message):
        get_or_create(
            ExtractedDonor(path=str(tmp_path / "net.pt"), layer=layer), place_at(HOST, "conv1", IMAGE), CPU, tmp_path
        )
    assert not (tmp_path / "donors").exists() or not [p for p in (tmp_path / "donors").iterdir() if p.is_dir()]


def test_a_layer_saved_alone_needs_no_name(tmp_path):
    torch.save(torch.nn.Conv2d(3, 4, 7).state_dict(), tmp_path / "layer.pt")
    with pytest.raises(UserError, match="holds a single layer, not conv1; leave donor.layer out"):
        get_or_create(
            ExtractedDonor(path=str(tmp_path / "layer.pt"), layer="conv1"),
            place_at(HOST, "conv1", IMAGE),
            CPU,
            tmp_path,
        )


def test_where_no_layer_is_named_and_none_is_at_the_site(tmp_path):
    torch.save({"a.weight": torch.ones(1, 1, 1, 1), "b.weight": torch.zeros(1)}, tmp_path / "net.pt")
    with pytest.raises(
        UserError,
        match="has no conv1, where the donor goes, and is no layer like the conv there; donor.layer=PATH names another: a, b",
    ):
        get_or_create(ExtractedDonor(path=str(tmp_path / "net.pt")), place_at(HOST, "conv1", IMAGE), CPU, tmp_path)
    with pytest.raises(UserError, match="has no norm beside it that a stem needs"):
        get_or_create(
            ExtractedDonor(path=str(tmp_path / "net.pt"), layer="a", kind="stem"),
            place_at(HOST, "conv1", IMAGE),
            CPU,
            tmp_path,
        )
    with pytest.raises(UserError, match="is a conv, but donor.kind=block"):
        get_or_create(
            ExtractedDonor(path=str(tmp_path / "net.pt"), layer="a", kind="block"),
            place_at(HOST, "conv1", IMAGE),
            CPU,
            tmp_path,
        )
