"""Donors out of whole networks: one training for all sites; a host's own layer."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import CPU, GREY, place_at
from layergraft.config.training_schema import OptimSpec, ScheduleSpec
from layergraft.data import Digits
from layergraft.donors import EndToEndDonor
from layergraft.donors.donor_cache import get_or_create
from layergraft.errors import UserError
from layergraft.hosts import CifarResNet

HOST = CifarResNet("resnet8", width=4)


def spec(**fields):
    host = fields.pop("host", HOST)
    return EndToEndDonor(
        data=Digits(classes=[5, 6, 7]), host=host, optim=OptimSpec(lr=3e-3), schedule=ScheduleSpec(epochs=2), **fields
    )


def test_every_site_cuts_from_the_same_network(tmp_path):
    donors = {
        path: get_or_create(spec(kind=kind), place_at(HOST, path, GREY), CPU, tmp_path)
        for path, kind in (("conv1", "stem"), ("layer2.0.conv1", None), ("layer3.0", None), ("layer1", None))
    }
    (folder,) = (tmp_path / "networks").iterdir()
    network = load_file(folder / "network.safetensors")
    assert torch.equal(donors["layer2.0.conv1"].layer.weight, network["layer2.0.conv1.weight"])
    assert torch.equal(donors["conv1"].layer.norm.running_var, network["bn1.running_var"])
    assert torch.equal(donors["layer3.0"].layer.conv2.weight, network["layer3.0.conv2.weight"])
    assert torch.equal(donors["layer1"].layer[0].bn1.weight, network["layer1.0.bn1.weight"])
    assert donors["conv1"].provenance["network"] == folder.name
    assert donors["conv1"].provenance["metrics"]["test/acc"] > 60  # of 3 classes
    untrained = HOST.build(GREY, 3, seed=0).state_dict()
    assert not torch.equal(untrained["conv1.weight"], network["conv1.weight"])


def test_another_layer_and_another_host(tmp_path):
    donor = get_or_create(
        spec(host=CifarResNet("resnet20", width=4), layer="layer1.2.conv1"),
        place_at(HOST, "layer1.0.conv2", GREY),
        CPU,
        tmp_path,
    )
    assert donor.architecture.in_channels == 4
    with pytest.raises(UserError, match="unknown layer of resnet8 in donor.layer: 'layer1.2.conv1'"):
        get_or_create(spec(layer="layer1.2.conv1"), place_at(HOST, "conv1", GREY), CPU, tmp_path)
    with pytest.raises(UserError, match="layer1.0 of resnet8 is a block, but donor.kind=conv"):
        get_or_create(spec(layer="layer1.0", kind="conv"), place_at(HOST, "conv1", GREY), CPU, tmp_path)


def test_a_host_with_weights_gives_its_own_layer_untrained(tmp_path):
    network = HOST.build(GREY, 3, seed=9)
    save_file(network.state_dict(), tmp_path / "host.safetensors")
    own = spec(host=CifarResNet("resnet8", width=4, weights=str(tmp_path / "host.safetensors")))
    donor = get_or_create(own, place_at(HOST, "layer2.0.conv2", GREY), CPU, tmp_path)
    assert torch.equal(donor.layer.weight, network.layer2[0].conv2.weight)
    assert not (tmp_path / "networks").exists() and "metrics" not in donor.provenance
    own.schedule = ScheduleSpec(epochs=1)  # of no effect, since nothing is trained
    assert (
        get_or_create(own, place_at(HOST, "layer2.0.conv2", GREY), CPU, tmp_path).provenance["key"]
        == donor.provenance["key"]
    )
    own.tune = True
    tuned = get_or_create(own, place_at(HOST, "layer2.0.conv2", GREY), CPU, tmp_path)
    assert not torch.equal(tuned.layer.weight, donor.layer.weight) and tuned.provenance["metrics"]
