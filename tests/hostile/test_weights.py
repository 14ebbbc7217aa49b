"""Weights and checkpoints that were damaged or made to do harm: refused in one line that names the file, or read as other values; nothing in it runs, and nothing is waited for."""

import json
import os
import pickle
import random
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from tests.hostile.harm import Bomb, damaged, number

from layergraft.hosts import CifarResNet

CUT = ["donor=extracted", "strategy=freeze"]


# Weights: donor.path and host.weights.


def state():
    return CifarResNet("resnet8", width=2).build((1, 8, 8), 5, 0).state_dict()


@number(4, 100)
@pytest.mark.parametrize("suffix", ["safetensors", "pt", "old.pth"])
def test_damaged_weights(suffix, number, asked, tmp_path):
    tensors = state()
    if suffix == "safetensors":
        save_file(tensors, tmp_path / "whole")
    else:
        torch.save(tensors, tmp_path / "whole", _use_new_zipfile_serialization=suffix == "pt")
    whole, rng, codes = (tmp_path / "whole").read_bytes(), random.Random(3), set()
    for index in range(number):
        path = tmp_path / f"{index}.{suffix}"
        path.write_bytes(damaged(whole, rng))
        keys = [[*CUT, f"donor.path={path}"], [f"host.weights={path}"]][index % 2]
        codes.add(asked(*keys, file=path)[0])
    assert codes == {0, 2}


def header(text, more=b""):
    text = text.encode()
    return struct.pack("<Q", len(text)) + text + more


SAFETENSORS = {
    "huge header": struct.pack("<Q", 2**60) + b"{}",
    "no header": struct.pack("<Q", 0),
    "no JSON": header("[" * 100_000),
    "negative": header('{"weight":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"1234"),
    "huge shape": header('{"weight":{"dtype":"F32","shape":[4611686018427387904,16],"data_offsets":[0,4]}}', b"1234"),
    "out of range": header('{"weight":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"1234"),
    "backwards": header('{"weight":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', b"1234"),
    "overlap": header(
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}',
        b"123456",
    ),
    "unknown type": header('{"weight":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    "small type": header('{"weight":{"dtype":"F4","shape":[2,1,2,2],"data_offsets":[0,4]}}', b"1234"),
    "two metadata": header('{"__metadata__":3}'),
    "name": header('{"\\u001b[31m\\n\\u202e":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
}


@pytest.mark.parametrize("what", SAFETENSORS)
def test_made_up_safetensors(what, asked, tmp_path):
    path = tmp_path / "made.safetensors"
    path.write_bytes(SAFETENSORS[what])
    for keys in ([*CUT, f"donor.path={path}"], [f"host.weights={path}"]):
        assert asked(*keys, file=path)[0] == 2


KINDS = ["int8", "complex64", "float16", "float8_e4m3fn"]
MORE = ["uint8", "int64", "bool", "float64", "bfloat16", "float8_e5m2", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", KINDS + [pytest.param(kind, marks=pytest.mark.slow) for kind in MORE])
def test_weights_of_another_type(kind, suffix, asked, tmp_path):
    path, dtype = tmp_path / f"typed.{suffix}", getattr(torch, kind)
    tensors = {name: tensor.to(dtype) for name, tensor in state().items()}
    torch.save(tensors, path) if suffix == "pt" else save_file(tensors, path)
    for keys in ([*CUT, f"donor.path={path}"], [f"host.weights={path}"]):
        assert asked(*keys, file=path)[0] == (0 if dtype.is_floating_point else 2)


def odd(what):
    one = torch.ones(1)
    made = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, 1, 3, 3), 0.1, 0, torch.qint8),
        "meta": lambda: torch.empty(2, 1, 3, 3, device="meta"),
        "stands for many": lambda: one.expand(2**20, 2**10, 3, 3),
        "no dimension": lambda: torch.tensor(1.0),
        "five": lambda: torch.ones(1, 1, 1, 1, 1),
    }
    return made[what]()


@pytest.mark.parametrize("what", ["sparse", "quantized", "meta", "stands for many", "no dimension", "five"])
@pytest.mark.filterwarnings("ignore")  # torch's, of what it will no longer have, as the file is made
def test_tensors_that_are_not_plain(what, asked, tmp_path):
    path = tmp_path / "odd.pt"
    torch.save(state() | {"conv1.weight": odd(what)}, path)
    for keys in ([*CUT, f"donor.path={path}", "donor.layer=conv1"], [f"host.weights={path}"]):
        assert asked(*keys, file=path)[0] == 2


def test_code_in_weights_does_not_run(asked, tmp_path):
    ran = tmp_path / "ran"
    torch.save({"conv1.weight": torch.ones(2, 1, 3, 3), "x": Bomb(ran)}, tmp_path / "a.pt")
    torch.save({"x": Bomb(ran)}, tmp_path / "b.ckpt", _use_new_zipfile_serialization=False)
    (tmp_path / "c.pth").write_bytes(pickle.dumps(Bomb(ran)))
    (tmp_path / "d.safetensors").write_bytes(pickle.dumps(Bomb(ran)))
    for name in ("a.pt", "b.ckpt", "c.pth", "d.safetensors"):
        for keys in ([*CUT, f"donor.path={name}"], [f"host.weights={name}"]):
            code, err = asked(*keys, file=name, what="train")
            assert code == 2 and not ran.exists(), err


def test_weights_that_unpack_to_more_than_they_are(asked, tmp_path):
    torch.save(state(), tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in whole.infolist():
            bomb.writestr(member.filename, whole.read(member) + bytes(5 * 10**6) * member.filename.endswith("/0"))
    for keys in ([*CUT, "donor.path=bomb.pt"], ["host.weights=bomb.pt"]):
        code, err = asked(*keys, file="bomb.pt", what="train")
        assert code == 2 and "unpack to" in err


@pytest.mark.parametrize("key", ["donor.path", "host.weights", "data.path"])
@pytest.mark.parametrize("what", ["folder", "pipe", "device", "nothing", "dangling", "long", "NUL"])
def test_what_is_no_file_is_not_waited_for(key, what, asked, tmp_path):
    path = tmp_path / "it.pt"
    if what == "folder":
        path.mkdir()
    if what == "pipe":
        os.mkfifo(path)
    if what == "dangling":
        path.symlink_to("nowhere")
    path = {"device": "/dev/zero", "long": "x" * 5000, "NUL": "'a\x00b'"}.get(what, path)
    more = {"donor.path": CUT, "data.path": ["data=npz"]}.get(key, [])
    assert asked(*more, f"{key}={path}", what="train")[0] == 2


# Checkpoints to go on from.


@number(2, 60)
def test_damaged_checkpoints(number, asked, tmp_path):
    """What an interrupted run has left is damaged: it goes on, begins again, or fails and its record says so."""
    run = ["data.train_size=20", "exec.checkpoint_seconds=0", "schedule.epochs=3"]
    torch_save, kept = torch.save, tmp_path / "kept"

    def keep(content, file, *rest, **options):
        torch_save(content, file, *rest, **options)
        if isinstance(content, dict) and "state_dict" in content:
            torch_save(content, kept)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "save", keep)
        kept.touch()
        assert asked(*run, what="train")[0] == 0
    whole, rng = kept.read_bytes(), random.Random(1)
    assert len(whole) > 1000
    (path,) = (tmp_path / "outputs" / "runs").glob("*/record.json")
    for _ in range(number):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "interrupted"}))
        path.with_name("last.ckpt").write_bytes(damaged(whole, rng))
        assert asked(*run, what="train")[0] in (0, 1)
        assert json.loads(path.read_text())["status"] in ("completed", "failed", "diverged")
