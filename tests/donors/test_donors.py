"""Donors: made once, read ever after; trained in each kind, the random control their start."""

import dataclasses
import json
import multiprocessing

import pytest
import torch

from conftest import CPU, GREY, place_at
from layergraft.config.training_schema import OptimSpec, ScheduleSpec
from layergraft.data import Digits
from layergraft.donors import RandomDonor, TrainedDonor
from layergraft.donors.controls import Control
from layergraft.donors.donor_cache import get_or_create
from layergraft.donors.donor_kind import key_of
from layergraft.errors import UserError
from layergraft.hosts import TorchvisionResNet
from layergraft.hosts.layer_architectures import Conv, Slot, Stem, architecture_of
from layergraft.hosts.resnets import Block
from layergraft.training.backend import Backend

SITE = Conv(4, 8, 3, 2, 1)
PLACE = Slot("layer2.0.conv1", SITE, GREY)
BLOCK = Slot("layer2.0", Block("basic", 4, 8, 8, 2, shortcut="conv"), GREY)


def trained(**fields):
    return TrainedDonor(
        data=Digits(classes=[5, 6, 7]), schedule=ScheduleSpec(epochs=2), optim=OptimSpec(lr=3e-3), **fields
    )


def test_a_donor_is_trained_once_and_then_read(tmp_path):
    first = get_or_create(trained(), PLACE, CPU, tmp_path)
    key = first.provenance["key"]
    folder = tmp_path / "donors" / key
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"donor.safetensors", "donor.json"} <= set(stamps)
    second = get_or_create(trained(), PLACE, CPU, tmp_path)
    assert torch.equal(first.layer.weight, second.layer.weight) and second.provenance == first.provenance
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    assert json.loads((folder / "donor.json").read_text())["metrics"]["test/acc"] > 50  # of 3 classes: it has learnt


def test_the_same_donor_comes_out_the_same(tmp_path):
    first, second = (get_or_create(trained(), PLACE, CPU, tmp_path / name) for name in "ab")
    assert torch.equal(first.layer.weight, second.layer.weight)


def test_random_is_what_trained_started_from(tmp_path):
    random = get_or_create(RandomDonor(seed=3), PLACE, CPU, tmp_path)
    network, layer = trained(seed=3).network(SITE, image_channels=1, num_classes=3)
    assert torch.equal(random.layer.weight, layer.weight)
    assert not torch.equal(get_or_create(trained(seed=3), PLACE, CPU, tmp_path).layer.weight, layer.weight)
    assert not torch.equal(random.layer.weight, get_or_create(RandomDonor(seed=4), PLACE, CPU, tmp_path).layer.weight)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("architecture", [SITE, Stem(SITE, "batch"), BLOCK.layer, Block("bottleneck", 4, 4, 16, 1, shortcut="conv")], ids=lambda f: f"{f.kind}-{f.out_channels}")  # fmt: skip
def test_single_layer_network(architecture, k):
    network, layer = trained(aux_depth=k).network(architecture, image_channels=1, num_classes=3)
    inside = [m for m in layer.modules() if isinstance(m, torch.nn.Conv2d)]
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions[1 : 1 + len(inside)] == inside and len(convolutions) == 1 + len(inside) + (
        k - 1
    )  # lift, layer, head
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_a_layer_that_takes_the_image_needs_no_lift_and_a_block_has_its_stem():
    bare, first = trained().network(Conv(1, 8, 3, 1, 1), image_channels=1, num_classes=3)
    assert bare[0] is first
    resnet, block = trained().network(Block("basic", 1, 8, 8, 1, shortcut="conv"), image_channels=1, num_classes=3)
    assert resnet[3] is block  # convolution, norm, ReLU, then the one block: a ResNet with one functional layer


@pytest.mark.parametrize("kind", ["conv", "stem", "block"])
def test_each_kind_learns_and_comes_back_whole(kind, tmp_path):
    donor = get_or_create(trained(kind=kind), BLOCK, CPU, tmp_path)
    assert donor.architecture.kind == kind and architecture_of(donor.layer) == donor.architecture
    assert (donor.architecture.in_channels, donor.architecture.out_channels, donor.architecture.stride) == (4, 8, 2)
    assert donor.provenance["metrics"]["test/acc"] > 50
    again = get_or_create(trained(kind=kind), BLOCK, CPU, tmp_path)
    for name, tensor in donor.layer.state_dict().items():
        assert torch.equal(tensor, again.layer.state_dict()[name])
    if kind != "conv":
        assert any(
            tensor.abs().max() > 0 for name, tensor in donor.layer.named_buffers() if name.endswith("running_mean")
        )


def test_key_holds_all_that_decides_the_weights():
    keys = {
        key_of(trained(), PLACE, CPU),
        key_of(trained(seed=1), PLACE, CPU),
        key_of(trained(aux_depth=3), PLACE, CPU),
        key_of(trained(bias=True), PLACE, CPU),
        key_of(trained(control=Control.permuted), PLACE, CPU),
        key_of(trained(), dataclasses.replace(PLACE, layer=Conv(4, 8, 3, 1, 1)), CPU),
        key_of(trained(), PLACE, Backend("cpu", "bf16_mixed")),
        key_of(TrainedDonor(data=Digits(classes=[5, 6, 8])), PLACE, CPU),
    }
    assert len(keys) == 8 and all(key.startswith("conv3x3-4-8.digits.") for key in keys)
    assert key_of(trained(), PLACE, CPU) == key_of(trained(), PLACE, Backend("cuda", "float32"))  # recorded, not keyed
    assert key_of(trained(), PLACE, CPU) == key_of(trained(), dataclasses.replace(PLACE, path="layer9"), CPU)


def test_a_donor_at_the_sites_resolution_learns_on_pooled_images(tmp_path):
    """As on images that were pooled beforehand; where the site's maps are no smaller, it is the donor that it is without."""
    small, large = (dataclasses.replace(PLACE, maps=size) for size in ((4, 4), (16, 16)))
    asked = trained(resolution="site")
    assert asked.pooled_to(asked.images(small), small) == (4, 4) and asked.pooled_to(asked.images(large), large) is None
    assert len({key_of(asked, small, CPU), key_of(asked, large, CPU), key_of(asked, PLACE, CPU)}) == 2
    assert key_of(asked, large, CPU) == key_of(trained(), small, CPU) == key_of(trained(), PLACE, CPU)
    donor = get_or_create(asked, small, CPU, tmp_path)
    assert donor.provenance["spec"]["pooled_to"] == [4, 4] and donor.provenance["metrics"]["test/acc"] > 50
    assert not torch.equal(donor.layer.weight, get_or_create(trained(), small, CPU, tmp_path).layer.weight)
    pooling, plain = (trained().network(SITE, 1, 3, pooled)[0] for pooled in ((4, 4), None))
    x_NCHW = torch.randn(2, 1, 8, 8)
    means_NCHW = x_NCHW.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    torch.testing.assert_close(pooling(x_NCHW), plain(means_NCHW))
    control = get_or_create(trained(resolution="site", control=Control.permuted), small, CPU, tmp_path)
    assert control.provenance["control_of"] == donor.key


def test_what_a_pooled_image_cannot_train_is_told():
    tiny = dataclasses.replace(PLACE, layer=Conv(4, 8, 5, 1, 0), maps=(2, 2))
    with pytest.raises(
        UserError, match="cannot be trained on images pooled \\(donor.resolution=site\\) to maps of 2 x 2 pixels"
    ):
        key_of(trained(resolution="site", padding=0), tiny, CPU)


def test_shape_is_the_sites_unless_given():
    assert trained().architecture(PLACE) == SITE and trained().architecture(BLOCK) == BLOCK.layer
    assert trained(kernel_size=7, bias=True).architecture(PLACE) == Conv(
        4, 8, 7, 2, 3, bias=True
    )  # the image keeps its size
    assert trained(kernel_size=7, padding=1).architecture(PLACE).padding == 1
    assert trained(kind="stem").architecture(BLOCK) == Stem(Conv(4, 8, 3, 2, 1), "batch")
    assert trained(kind="block", out_channels=16).architecture(BLOCK).out_channels == 16
    assert trained(kind="block").architecture(PLACE) == Block("basic", 4, 8, 8, 2, shortcut="conv")


@pytest.mark.parametrize("kind, path", [("block", "layer1.0"), ("block", "layer2.0"), ("stem", "conv1"), ("conv", "layer3.0.downsample.0")])  # fmt: skip
def test_random_and_trained_are_what_the_site_is(kind, path):
    slot = place_at(TorchvisionResNet("resnet50", width=4), path)
    for spec in (trained(kind=kind), RandomDonor(kind=kind)):
        architecture = spec.architecture(slot)
        assert (architecture.kind, architecture.in_channels, architecture.out_channels) == (
            kind,
            slot.layer.in_channels,
            slot.layer.out_channels,
        )


def test_a_key_is_of_the_shape_however_it_was_said():
    assert key_of(trained(in_channels=4, kernel_size=3, kind="conv"), PLACE, CPU) == key_of(trained(), PLACE, CPU)


def test_what_cannot_be_trained_is_said_before():
    with pytest.raises(UserError, match="donor: data.classes is"):
        key_of(TrainedDonor(data=Digits(classes=[5])), PLACE, CPU)
    with pytest.raises(UserError, match="donor.optim.batch_size is 9999"):
        key_of(TrainedDonor(data=Digits(), optim=OptimSpec(batch_size=9999)), PLACE, CPU)
    with pytest.raises(UserError, match="donor.kernel_size is set, but a block's convolutions have their own"):
        key_of(trained(kernel_size=5), BLOCK, CPU)
    with pytest.raises(UserError, match="layer1 is a stage, and donor=trained trains a single layer"):
        key_of(trained(), place_at(TorchvisionResNet("resnet18", width=4), "layer1"), CPU)
    with pytest.raises(UserError, match="donor: a conv, 4 -> 8 .* cannot be trained on images of 8 x 8 pixels"):
        key_of(trained(kernel_size=11, padding=0), PLACE, CPU)


def _ask(outputs, weights):
    torch.set_num_threads(1)
    weights.put(get_or_create(trained(seed=5), PLACE, CPU, outputs).layer.weight.tolist())


@pytest.mark.slow
def test_processes_that_ask_at_once_train_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    weights = context.Queue()
    processes = [context.Process(target=_ask, args=(tmp_path, weights)) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = (weights.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert first == second
    (folder,) = [path for path in (tmp_path / "donors").iterdir() if path.is_dir()]  # and nothing half-written
    assert len(list((tmp_path / "networks" / folder.name).glob("events.*"))) == 1


def test_a_donor_whose_training_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of cheese")

    monkeypatch.setattr("layergraft.networks.network_cache._fit", broken)
    with pytest.raises(RuntimeError, match="out of cheese"):
        get_or_create(trained(), PLACE, CPU, tmp_path)
    assert not [path for path in (tmp_path / "donors").iterdir() if path.is_dir()]


def test_a_donor_sees_images_with_the_channels_of_the_hosts(tmp_path):
    """A grey source for a host of colour images: repeated, not lifted by a layer of its own; and the key knows."""
    grey, colour = (Slot("conv1", Conv(n, 4, 3, 1, 1), (n, 8, 8)) for n in (1, 3))
    deep = [dataclasses.replace(slot, layer=SITE) for slot in (grey, colour)]
    assert len({key_of(trained(), slot, CPU) for slot in (grey, colour, *deep)}) == 4
    donor = get_or_create(trained(), colour, CPU, tmp_path)
    assert donor.architecture.in_channels == 3 and donor.provenance["image"] == [3, 8, 8]
    own = get_or_create(trained(in_channels=1), colour, CPU, tmp_path)  # a grey donor, to be fitted
    assert own.architecture.in_channels == 1 and own.provenance["image"] == [1, 8, 8]
