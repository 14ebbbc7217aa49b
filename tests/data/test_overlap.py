"""Which images of a target a network has seen, and what separates the two."""

import re

import numpy as np
import pytest
from PIL import Image

from layergraft.data import Digits, Folder, Npz
from layergraft.data.overlap import Learned, advice, leak


def of(who, at, spec, seed=0):
    return Learned(who, at, spec, seed, spec.load(seed))


def donor(spec, seed=0):
    return of("the donor", "donor.data", spec, seed)


def target(spec, seed=0):
    return of("the run", "data", spec, seed)


def test_the_same_split_shares_no_image_and_another_does():
    assert leak(donor(Digits()), target(Digits())) is None
    assert leak(donor(Digits(classes=[5, 6, 7])), target(Digits(classes=[7, 1]))) is None
    source, run = donor(Digits(split_seed=1)), target(Digits())
    numbers = [
        len(np.intersect1d(source.images.splits[a].rows, run.images.splits[b].rows))
        for a, b in (("train", "val"), ("train", "test"), ("val", "test"))
    ]
    assert leak(source, run) == (
        f"the donor's training split has {numbers[0]} of the 300 validation images and {numbers[1]} of the 899 test images of data, "
        f"and its validation split has {numbers[2]} of the 899 test images of data"
    )
    assert numbers[1] == 307


@pytest.mark.parametrize("source, run", [
    (Digits(split_seed=1), Digits()),
    (Digits(), Digits(split_seed=2)),
    (Digits(val_share=0.2, split_seed=1), Digits()),
    (Digits(half="A", halves="images", split_seed=3), Digits(train_size=50)),
    (Digits(half="B", halves="images", split_seed=3), Digits(half="B", halves="images")),
], ids=str)  # fmt: skip
def test_the_advice_works(source, run):
    before = donor(source), target(run)
    assert leak(*before)
    said = advice(*before)
    keys = {key: float(value) if "share" in key else int(value) for key, value in re.findall(r"(\S+)=([\d.]+)", said)}
    changes = [
        {k.removeprefix(f"{at}."): v for k, v in keys.items() if k.startswith(f"{at}.")}
        for at in ("donor.data", "data")
    ]
    assert keys and leak(before[0].changed(changes[0]), before[1].changed(changes[1])) is None


def test_a_host_shares_not_even_training_images_and_halves_separate_them():
    host, run = of("the host", "host.pretrain.data", Digits()), target(Digits())
    assert "598 of the 598 training images" in leak(host, run)
    halves = "data.half=B data.halves=images host.pretrain.data.half=A host.pretrain.data.halves=images"
    assert advice(host, run) == f"to separate them give {halves}"
    for seed in (0, 1):  # whatever the seeds
        a, b = (Digits(half=half, halves="images") for half in "AB")
        assert leak(of("the host", "host.pretrain.data", a), target(b, seed)) is None


def test_the_same_pixels_in_another_file_count_before_any_corruption(tmp_path):
    digits = Digits().load(0)
    arrays = {f"{part}_images": split.x_NCHW[:, 0] for part, split in digits.splits.items()}
    arrays |= {f"{part}_labels": split.y_N for part, split in digits.splits.items()}
    np.savez(tmp_path / "copy.npz", **arrays)
    copy = donor(Npz(path=str(tmp_path / "copy.npz")))
    assert leak(copy, target(Digits())) is None  # the same split, in a file
    blurred = Digits(split_seed=1)
    blurred.corrupt.blur = 3
    assert "of the 899 test images" in leak(copy, target(blurred))
    assert advice(copy, target(blurred)) == "to separate them choose other images in donor.data or in data"


def test_the_same_files_decoded_to_another_size(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")

    def folder(**values):
        return Folder(path=str(tmp_path / "images"), cache=str(tmp_path / "cache"), **values)

    source, run = donor(folder(size=16, split_seed=1)), target(folder(size=8))
    shared = len(np.intersect1d(source.images.train.rows, run.images.test.rows))
    assert shared and f"and {shared} of the {len(run.images.test)} test images" in leak(source, run)
    assert "data.split_seed=0" in advice(source, run)
    assert leak(donor(folder(size=16)), target(folder(size=8, channels=1))) is None
