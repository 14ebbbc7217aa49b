"""Donors: trained once, read ever after, the random control their start."""

import json
import multiprocessing

import pytest
import torch

from layergraft.data import Digits
from layergraft.donors import RandomDonor, TrainedDonor
from layergraft.donors.cache import key_of, obtain
from layergraft.donors.geometry import Geometry
from layergraft.errors import UserError
from layergraft.specs import OptimSpec, ScheduleSpec
from layergraft.training.fit import Backend

CPU = Backend("cpu", "float32")
SITE = Geometry(4, 8, 3, 2, 1, bias=False)


def trained(**fields):
    return TrainedDonor(
        data=Digits(classes=[5, 6, 7]), schedule=ScheduleSpec(epochs=2), optim=OptimSpec(lr=3e-3), **fields
    )


def test_a_donor_is_trained_once_and_then_read(tmp_path):
    first = obtain(trained(), SITE, CPU, tmp_path)
    key = first.provenance["key"]
    folder = tmp_path / "donors" / key
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"donor.safetensors", "donor.json"} <= set(stamps)
    second = obtain(trained(), SITE, CPU, tmp_path)
    assert torch.equal(first.layer.weight, second.layer.weight) and second.provenance == first.provenance
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    assert json.loads((folder / "donor.json").read_text())["metrics"]["test/acc"] > 50  # of 3 classes: it has learnt


def test_the_same_donor_comes_out_the_same(tmp_path):
    first, second = (obtain(trained(), SITE, CPU, tmp_path / name) for name in "ab")
    assert torch.equal(first.layer.weight, second.layer.weight)


def test_random_is_what_trained_started_from(tmp_path):
    random = obtain(RandomDonor(seed=3), SITE, CPU, tmp_path)
    network, layer = trained(seed=3).network(SITE, image_channels=1, num_classes=3)
    assert torch.equal(random.layer.weight, layer.weight)
    assert not torch.equal(obtain(trained(seed=3), SITE, CPU, tmp_path).layer.weight, layer.weight)
    assert not torch.equal(random.layer.weight, obtain(RandomDonor(seed=4), SITE, CPU, tmp_path).layer.weight)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_single_layer_network(k):
    network, layer = trained(k=k).network(SITE, image_channels=1, num_classes=3)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions[1] is layer and len(convolutions) == 1 + 1 + (k - 1)  # lift, layer, head
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    bare, first = trained(k=k).network(Geometry(1, 8, 3, 1, 1, False), image_channels=1, num_classes=3)
    assert bare[0] is first  # a layer that takes the image needs no lift


def test_key_holds_all_that_decides_the_weights():
    keys = {
        key_of(trained(), SITE, CPU),
        key_of(trained(seed=1), SITE, CPU),
        key_of(trained(k=3), SITE, CPU),
        key_of(trained(bias=True), SITE, CPU),
        key_of(trained(), Geometry(4, 8, 3, 1, 1, bias=False), CPU),
        key_of(trained(), SITE, Backend("cpu", "bf16_mixed")),
        key_of(TrainedDonor(data=Digits(classes=[5, 6, 8])), SITE, CPU),
    }
    assert len(keys) == 7 and all(key.startswith("conv3x3-4-8.digits.seed") for key in keys)
    assert key_of(trained(), SITE, CPU) == key_of(trained(), SITE, Backend("cuda", "float32"))  # recorded, not keyed


def test_shape_is_the_sites_unless_given():
    assert trained().geometry(SITE) == SITE
    assert trained(kernel_size=7, padding=3, bias=True).geometry(SITE) == Geometry(4, 8, 7, 2, 3, bias=True)


def test_what_cannot_be_trained_is_said_before():
    with pytest.raises(UserError, match="donor: data.classes is"):
        key_of(TrainedDonor(data=Digits(classes=[5])), SITE, CPU)
    with pytest.raises(UserError, match="donor.optim.batch_size is 9999"):
        key_of(TrainedDonor(data=Digits(), optim=OptimSpec(batch_size=9999)), SITE, CPU)


def _ask(outputs, weights):
    torch.set_num_threads(1)
    weights.put(obtain(trained(seed=5), SITE, CPU, outputs).layer.weight.tolist())


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
    assert len(list(folder.glob("events.*"))) == 1
