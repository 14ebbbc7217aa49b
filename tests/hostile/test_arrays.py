"""NPZ files that were damaged or made to do harm: refused in one line that names the file, or read as other values; nothing in it runs, and nothing is waited for."""

import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.data.written import medmnist_arrays
from tests.hostile.harm import Bomb, damaged, number

# NPZ files.


def arrays(size=8, number=60, channels=1):
    return medmnist_arrays(number=number, size=size, channels=channels)


@number(5, 150)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz(save, number, asked, tmp_path):
    save(tmp_path / "whole.npz", **arrays())
    whole, rng, codes = (tmp_path / "whole.npz").read_bytes(), random.Random(2), set()
    for index in range(number):
        path = tmp_path / f"{index}.npz"
        path.write_bytes(damaged(whole, rng))
        codes.add(asked("data=npz", f"data.path={path}", file=path, what="sites")[0])
    assert 2 in codes


NPZ = {
    "floats": lambda a: a | {"train_images": a["train_images"].astype(np.float64)},
    "strings": lambda a: a | {"train_images": a["train_images"].astype(str)},
    "string labels": lambda a: a | {"train_labels": a["train_labels"].astype(str)},
    "complex labels": lambda a: a | {"train_labels": a["train_labels"].astype(complex)},
    "NaN": lambda a: a | {"train_labels": np.full(60, np.nan)},
    "inf": lambda a: a | {"train_labels": np.full(60, np.inf)},
    "huge label": lambda a: a | {"train_labels": np.where(np.arange(60) == 3, 10**15, a["train_labels"][:, 0])},
    "unsigned label": lambda a: a | {"train_labels": np.full(60, 2**64 - 1, np.uint64)},
    "negative label": lambda a: a | {"train_labels": np.full(60, -1)},
    "structures": lambda a: a | {"train_images": np.zeros((60, 8, 8), [("x", np.uint8)])},
    "no pixels": lambda a: {name: x[:, :0] if "images" in name else x for name, x in a.items()},
    "no channels": lambda a: {name: x[..., None][..., :0] if "images" in name else x for name, x in a.items()},
    "no images": lambda a: {name: x[:0] for name, x in a.items()},
    "no labels": lambda a: {name: x[:, :0] if "labels" in name else x for name, x in a.items()},
    "scalars": lambda a: {name: np.uint8(1) for name in a},
    "dates": lambda a: a | {"train_labels": np.zeros(60, "datetime64[s]")},
    "objects": lambda a: a | {"train_labels": np.array([Bomb(Path("ran"))] * 60, object)},
    "other names": lambda a: {"../../x": a["train_images"], "/etc/x\x1b[31m": a["train_labels"]},
}


@pytest.mark.parametrize("what", NPZ)
@pytest.mark.parametrize("keys", [["data=npz", "data.path=made.npz"], ["data=cifar10", "exec.data=."]])
def test_made_up_npz(what, keys, asked, tmp_path):
    np.savez(tmp_path / "made.npz", **NPZ[what](arrays()), allow_pickle=True)
    (tmp_path / "cifar10.npz").symlink_to("made.npz")
    code, err = asked(*keys, what="sites")
    assert code == 2 and not (tmp_path / "ran").exists()
    assert keys[1].partition("=")[2].removesuffix(".") in err or "npz: " in err or "cifar10: " in err


def npy(shape, dtype="|u1", body=b""):
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


NPY = {
    "absurd": npy((2**40, 2**10, 2**10)),
    "overflow": npy((2**62, 2**62)),
    "negative": npy((-1, 8, 8), body=bytes(64)),
    "no end": npy((10**6, 10**4), body=bytes(100)),
    "pickle": npy((1,), "|O", pickle.dumps([Bomb("ran")])),
    "code": b"\x93NUMPY\x01\x00" + struct.pack("<H", 40) + b"__import__('os').mkdir('ran')".ljust(40),
    "deep": b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b"(" * 60000,
    "no array": b"hello",
    "bare pickle": pickle.dumps(Bomb("ran")),
}


@pytest.mark.parametrize("what", NPY)
def test_made_up_arrays(what, asked, tmp_path):
    with zipfile.ZipFile(tmp_path / "made.npz", "w") as file:
        file.writestr("train_images.npy", NPY[what])
        file.writestr("train_labels.npy", NPY[what])
    (tmp_path / "bare.npz").write_bytes(NPY[what])
    for name in ("made.npz", "bare.npz"):
        assert asked("data=npz", f"data.path={name}", file=name, what="sites")[0] == 2
    assert not (tmp_path / "ran").exists()


def claims(path, member, size):
    """Have the archive say that `member` unpacks to `size` bytes."""
    data, name = bytearray(path.read_bytes()), member.encode()
    at = data.index(b"PK\x01\x02", data.rindex(name) - 60)  # its entry in the directory at the end
    data[at + 24 : at + 28] = struct.pack("<I", size)
    path.write_bytes(bytes(data))


def test_npz_that_unpacks_to_more_than_the_memory(asked, tmp_path, monkeypatch):
    np.savez_compressed(
        tmp_path / "bomb.npz", **{name: np.zeros((2**22, 2, 2), np.uint8) for name in ("train_images", "train_labels")}
    )
    assert (tmp_path / "bomb.npz").stat().st_size < 10**5
    sysconf = os.sysconf
    with monkeypatch.context() as patched:  # a machine of 16 MiB
        patched.setattr(
            os,
            "sysconf",
            lambda name: 16 * 2**20 // sysconf("SC_PAGE_SIZE") if name == "SC_PHYS_PAGES" else sysconf(name),
        )
        for keys in (["data=npz", "data.path=bomb.npz"], ["data=cifar10", "exec.data=."]):
            (tmp_path / "cifar10.npz").unlink(missing_ok=True)
            (tmp_path / "cifar10.npz").symlink_to("bomb.npz")
            code, err = asked(*keys, what="sites")
            assert code == 2 and "unpack to" in err and ".npz is refused" in err
    np.savez_compressed(tmp_path / "many.npz", **{f"x{i}": np.zeros(10) for i in range(9)})
    for index in range(9):  # 36 GiB by its own word
        claims(tmp_path / "many.npz", f"x{index}.npy", 2**32 - 2)
    assert asked("data=npz", "data.path=many.npz", file="many.npz", what="sites")[0] == 2


def test_npz_that_says_it_is_smaller_than_it_is(asked, tmp_path):
    np.savez_compressed(
        tmp_path / "lie.npz", **{name: np.zeros((2**22, 2, 2), np.uint8) for name in ("train_images", "train_labels")}
    )
    claims(tmp_path / "lie.npz", "train_images.npy", 1000)
    assert asked("data=npz", "data.path=lie.npz", file="lie.npz", what="sites")[0] == 2


def test_an_encrypted_archive_and_unknown_compression(asked, tmp_path):
    np.savez(tmp_path / "made.npz", **arrays())
    data = (tmp_path / "made.npz").read_bytes()
    locked, other = bytearray(data), bytearray(data)
    at = [i for i in range(len(data)) if data[i : i + 4] in (b"PK\x01\x02", b"PK\x03\x04")]
    for i in at:
        central = data[i : i + 4] == b"PK\x01\x02"
        locked[i + (8 if central else 6)] |= 1
        other[i + (10 if central else 8)] = 99
    for content in (locked, other):
        (tmp_path / "made.npz").write_bytes(bytes(content))
        assert asked("data=npz", "data.path=made.npz", file="made.npz", what="sites")[0] == 2
