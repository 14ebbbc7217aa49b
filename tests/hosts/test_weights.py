"""Hosts with trained weights: torchvision's by name, through its own loading, or a file."""

import os

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from layergraft.errors import UserError
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.weights import fingerprint, pretrained, report

IMAGE = (3, 64, 64)


def test_torchvisions_weights_by_name_through_its_own_loading(tmp_path, monkeypatch):
    """A file in torchvision's cache under torchvision's name is what a download leaves there."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None)
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    name = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    torch.save(theirs.state_dict(), tmp_path / "checkpoints" / name)
    spec = TorchvisionResNet("resnet18", weights="IMAGENET1K_V1")
    ours = pretrained(spec, (3, 32, 32), 1000, seed=0)
    x = torch.randn(2, *IMAGE)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert fingerprint(spec) == fingerprint(TorchvisionResNet("resnet18", weights="DEFAULT"))
    assert report(spec, ours, True).startswith(
        f"{len(theirs.state_dict())} of {len(theirs.state_dict())} tensors from "
    )
    few = pretrained(spec, IMAGE, 5, seed=0)  # another number of classes: the trunk is theirs, the head is new
    fresh = TorchvisionResNet("resnet18").build(IMAGE, 5, seed=0)
    assert torch.equal(few.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert torch.equal(few.fc.weight, fresh.fc.weight)
    assert report(spec, few, False).endswith("; fc.weight, fc.bias are new")


def test_what_lies_in_torchvisions_cache_is_read_as_data(tmp_path, monkeypatch):
    """Somebody has put it there, as the error without a network says to."""

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    spec = TorchvisionResNet("resnet18", weights="DEFAULT")
    torch.save({"x": Bomb()}, file)
    with pytest.raises(UserError, match="is refused: reading it would run code"):
        pretrained(spec, IMAGE, 5, seed=0)
    assert not (tmp_path / "boom").exists()
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[:-99])
    with pytest.raises(UserError, match="cut short"):
        pretrained(spec, IMAGE, 5, seed=0)
    state["fc.bias"][3] = torch.nan
    torch.save(state, file)
    with pytest.raises(UserError, match="fc.bias has 1 values of 1000 that are NaN or Inf"):
        pretrained(spec, IMAGE, 5, seed=0)


def test_without_a_network_the_error_says_which_file_to_put_where(tmp_path, monkeypatch):
    from urllib.error import URLError

    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=f"put resnet18-f37072fd.pth into {tmp_path}/checkpoints, or give a file"):
        pretrained(TorchvisionResNet("resnet18", weights="IMAGENET1K_V1"), IMAGE, 5, seed=0)


def test_unknown_names_list_what_there_is():
    with pytest.raises(
        UserError,
        match="'IMAGENET1K_V3'; did you mean 'IMAGENET1K_V2'\\? There are: DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2",
    ):
        pretrained(TorchvisionResNet("resnet50", weights="IMAGENET1K_V3"), IMAGE, 5, seed=0)


@pytest.fixture
def file(tmp_path):
    """Function: a change to the state dict -> the path of a file with a resnet20 of width 4, so changed."""

    def make(change=lambda state: None):
        state = CifarResNet("resnet20", width=4).build((3, 32, 32), 5, seed=7).state_dict()
        change(state)
        save_file(state, tmp_path / "host.safetensors")
        return str(tmp_path / "host.safetensors")

    return make


def test_a_file_of_ones_own(file):
    spec = CifarResNet("resnet20", width=4, weights=file())
    network = pretrained(spec, (3, 32, 32), 5, seed=0)
    theirs = CifarResNet("resnet20", width=4).build((3, 32, 32), 5, seed=7)
    assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in network.state_dict().items())
    assert fingerprint(spec) and fingerprint(CifarResNet("resnet20")) is None


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "missing: layer1.0.conv1.weight"),
        (lambda s: s.update({"layer9.weight": torch.zeros(1)}), "not part of it: layer9.weight"),
        (lambda s: s.update({"bn1.weight": torch.zeros(9)}), r"of another shape: bn1.weight \(9,\) where \(4,\) is needed"),
        (lambda s: s["conv1.weight"].view(-1)[:2].fill_(torch.nan), "conv1.weight has 2 values of 108 that are NaN or Inf"),
        (lambda s: s.update({"conv1.weight": torch.zeros(8, 3, 3, 3)}), "of a network of width 8, the host's is 4; host.width=8"),
        (lambda s: s.update({"conv1.weight": torch.zeros(4, 3, 7, 7)}), "has a stem of 7 x 7, the host one of 3 x 3; host.stem=imagenet"),
        (lambda s: s.pop("bn1.running_mean"), "is of a network with group norm; host.norm=group"),
        (lambda s: s.update({"bn1.weight": torch.zeros(4, dtype=torch.int8)}), "not floating-point numbers: bn1.weight is torch.int8"),
        (lambda s: s.update({"conv1.weight": torch.full((4, 3, 3, 3), 1e300, dtype=torch.float64)}), "conv1.weight has 108 values of 108"),
        (lambda s: s.update({"conv1.weight": torch.zeros(4, 1, 3, 3)}), "takes images of 1 channels and is given 3; host.in_channels=1"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_match(change, message, file):
    with pytest.raises(UserError, match=message):
        pretrained(CifarResNet("resnet20", width=4, weights=file(change)), (3, 32, 32), 5, seed=0)


def test_a_count_of_batches_may_be_missing(file):
    path = file(lambda s: [s.pop(name) for name in list(s) if name.endswith("num_batches_tracked")])
    assert pretrained(CifarResNet("resnet20", width=4, weights=path), (3, 32, 32), 5, seed=0)
