"""Folders of images and DICOM files that were damaged or made to do harm: refused in one line that names the file, or read as other values; nothing in it runs, and nothing is waited for."""

import os
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.written import dicom_file
from tests.hostile.harm import damaged, number

from conftest import SMALLEST

# Folders of images.


def pets(root, number=30):
    for c, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for index in range(number):
            pixels = np.random.default_rng(100 * c + index).integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


FOLDER = ["data=folder", "data.path=pets", "data.size=8", "data.cache=outputs/data"]


@number(2, 40)
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "ppm", "tif", "webp"])
def test_damaged_images(suffix, number, asked, tmp_path):
    pets(tmp_path / "pets")
    picture = tmp_path / "pets" / "cat" / f"0.{suffix}"
    Image.open(tmp_path / "pets" / "cat" / "1.png").resize((40, 40)).save(picture)
    whole, rng = picture.read_bytes(), random.Random(3)
    for _ in range(number):
        picture.write_bytes(damaged(whole, rng))
        code, err = asked(*FOLDER, what="sites")
        assert code == 0 or str(picture.name) in err
        assert asked(*FOLDER, "data.skip_corrupt=true", what="sites")[0] == 0


def png(width, height):
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(ran) (w) file closefile\nshowpage\n"


@pytest.mark.parametrize(
    "content", [png(60_000, 60_000), png(10_000, 10_000), png(2**31 - 1, 2**31 - 1), POSTSCRIPT, b"", b"GIF89a"]
)
def test_images_that_are_none_or_far_larger_than_they_look(content, asked, tmp_path, monkeypatch):
    import subprocess

    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: started.append(args))
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **options: started.append(args))
    pets(tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "0.png").write_bytes(content)
    code, err = asked(*FOLDER, file="cat/0.png", what="sites")
    assert code == 2 and started == []


def test_links(asked, tmp_path):
    outside, root = pets(tmp_path / "outside"), pets(tmp_path / "real")
    (tmp_path / "pets").symlink_to("real")  # the folder itself may be one
    (root / "cat" / "inside.png").symlink_to("0.png")
    (root / "again").symlink_to("cat")
    assert asked(*FOLDER, what="sites")[0] == 0
    for target, at in {
        outside / "cat" / "0.png": root / "cat" / "x.png",
        Path("../../outside/dog/0.png"): root / "dog" / "y.png",
        Path("/dev/zero"): root / "cat" / "z.png",
        outside / "cat": root / "bird",
        outside / "dog": root / "cat" / "more",
        Path("/"): root / "cat" / "all",
        Path("../.."): root / "cat" / "up",
        Path(".."): root / "cat" / "round",
    }.items():
        at.symlink_to(target)
        code, err = asked(*FOLDER, file=at.name, what="sites")
        assert code == 2 and "is refused" in err
        at.unlink()
    (root / "cat" / "gone.png").symlink_to("nowhere")
    assert asked(*FOLDER, file="gone.png", what="sites")[0] == 2


def test_a_pipe_among_the_images(asked, tmp_path):
    pets(tmp_path / "pets")
    os.mkfifo(tmp_path / "pets" / "cat" / "pipe.png")
    assert asked(*FOLDER, file="pipe.png", what="sites")[0] == 2


def test_names_that_a_terminal_obeys(asked, tmp_path):
    root = pets(tmp_path / "pets")
    (root / "cat" / "a\x1b[31m\nb.png").write_bytes(b"")
    code, err = asked(*FOLDER, what="sites")
    assert code == 2 and "\\x1b[31m" in err
    (root / "cat" / "a\x1b[31m\nb.png").unlink()
    os.rename(os.fsencode(root / "dog"), os.fsencode(root) + b"/\xff\n<script>")  # no UTF-8
    for what in ("sites", "train"):
        assert asked(*FOLDER, what=what)[0] == 0


# DICOM files and their table.


def scans(root, number=60):
    root.mkdir()
    lines = ["file,label"]
    for index in range(number):
        pixels = np.random.default_rng(index).integers(0, 4096, (12, 12)).astype(np.uint16)
        dicom_file(root / f"{index}.dcm", pixels)
        lines.append(f"{index}.dcm,{'sick' if index % 2 else 'well'}")
    (root / "labels.csv").write_text("\n".join(lines))
    return lines


DICOM = ["data=dicom", "data.path=scans", "data.size=8", "data.cache=outputs/data"]


@number(3, 150)
def test_damaged_dicom(number, asked, tmp_path):
    scans(tmp_path / "scans")
    scan = tmp_path / "scans" / "0.dcm"
    whole, rng = scan.read_bytes(), random.Random(4)
    for _ in range(number):
        scan.write_bytes(damaged(whole, rng))
        code, err = asked(*DICOM, what="sites")
        assert code == 0 or "0.dcm" in err


@pytest.mark.parametrize("tags", [
    {"Rows": 65535, "Columns": 65535}, {"Rows": 0}, {"NumberOfFrames": "2000000000"}, {"BitsAllocated": 64}, {"BitsStored": 0},
    {"RescaleSlope": "1e308", "RescaleIntercept": "1e308"}, {"WindowCenter": "5", "WindowWidth": "-1"}, {"SamplesPerPixel": 7},
    {"PhotometricInterpretation": "X\x1b"}, {"PixelRepresentation": 9}, {"PixelData": b""},
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # pydicom's, as the file is made
def test_made_up_dicom(tags, asked, tmp_path):
    lines = scans(tmp_path / "scans")
    dicom_file(tmp_path / "scans" / "0.dcm", np.ones((12, 12), np.uint16), **tags)
    code, err = asked(*DICOM, file="0.dcm", what="sites")
    assert code == 2 and len(lines) == 61


def test_a_deflated_dicom(asked, tmp_path):
    import pydicom

    scans(tmp_path / "scans")
    path = tmp_path / "scans" / "0.dcm"
    image = pydicom.dcmread(path)
    image.Rows = image.Columns = 5000
    image.PixelData = bytes(5000 * 5000 * 2)
    image.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    image.save_as(path)
    assert path.stat().st_size < 10**6
    code, err = asked(*DICOM, file="0.dcm", what="sites")
    assert code == 2 and "deflated" in err


TABLES = {
    "up": lambda lines: [*lines, "../out.dcm,sick"],
    "absolute": lambda lines: [*lines, "{here}/out.dcm,sick"],
    "link": lambda lines: [*lines, "link.dcm,sick"],
    "device": lambda lines: [*lines, "/dev/zero,sick"],
    "pipe": lambda lines: [*lines, "pipe.dcm,sick"],
    "folder": lambda lines: [*lines, ".,sick"],
    "NUL": lambda lines: [*lines, "a\0b.dcm,sick"],
    "long": lambda lines: [*lines, f"{'x' * 10**6},sick"],
    "more fields": lambda lines: [*lines, "1.dcm,sick,7,8,9"],
    "every line longer": lambda lines: [lines[0], *(f"{line},1" for line in lines[1:])],
    "quote": lambda lines: [*lines, '"1.dcm'],
    "same column": lambda lines: ["file,label,file", *(f"{line},x" for line in lines[1:])],
    "empty": lambda lines: [],
    "head alone": lambda lines: lines[:1],
}


@pytest.mark.parametrize("what", TABLES)
def test_made_up_tables(what, asked, tmp_path):
    lines = TABLES[what](scans(tmp_path / "scans"))
    shutil.copy(tmp_path / "scans" / "0.dcm", tmp_path / "out.dcm")
    (tmp_path / "scans" / "link.dcm").symlink_to(tmp_path / "out.dcm")
    os.mkfifo(tmp_path / "scans" / "pipe.dcm")
    (tmp_path / "scans" / "labels.csv").write_text("\n".join(lines).replace("{here}", str(tmp_path)))
    code, err = asked(*DICOM, what="sites")
    assert code == (0 if what == "same column" else 2), err


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "cp037"])
def test_tables_in_another_encoding(encoding, asked, tmp_path):
    lines = scans(tmp_path / "scans")
    (tmp_path / "scans" / "labels.csv").write_bytes("\n".join(lines).encode(encoding))
    assert asked(*DICOM, file="labels.csv", what="sites")[0] == 2


def test_a_table_elsewhere(asked, tmp_path):
    scans(tmp_path / "scans")
    (tmp_path / "scans" / "labels.csv").rename(tmp_path / "labels.csv")
    (tmp_path / "scans" / "linked.csv").symlink_to("../labels.csv")
    os.mkfifo(tmp_path / "scans" / "pipe.csv")
    for name in ("../labels.csv", tmp_path / "labels.csv", "linked.csv", "pipe.csv", "."):
        assert asked(*DICOM, f"data.labels={name}", what="sites")[0] == 2


def test_a_download_is_tried_where_it_was_asked_for(tmp_path, monkeypatch, command, no_network):
    monkeypatch.chdir(tmp_path)
    assert command("train", *SMALLEST, "data.train_size=20")[0] == 0 and no_network == []
    code, _, err = command("plan", *SMALLEST, "data=cifar10")
    assert code == 2 and "could not be downloaded" in err and no_network
