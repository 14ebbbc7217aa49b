"""Batches: order and augmentation are a function of (seed, epoch)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from layergraft.data.batches import Batches, BatchSpec, shifted
from layergraft.data.image_data import Split


def epoch(batches, number):
    batches.set_epoch(number)
    return [(x.clone(), y.clone()) for x, y in batches]


def same(first, second):
    return all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))


def test_an_epoch_is_the_same_whenever_it_is_drawn(images):
    first, second = (Batches.of(images(), BatchSpec(10, shift=2), 3, "cpu").train for _ in range(2))
    drawn = [epoch(first, number) for number in range(3)]
    torch.rand(5)
    assert same(epoch(second, 2), drawn[2]) and same(epoch(second, 0), drawn[0])
    assert not same(drawn[0], drawn[1])
    assert not same(drawn[0], epoch(Batches.of(images(), BatchSpec(10, shift=2), 4, "cpu").train, 0))


def test_an_epoch_holds_each_image_once_but_the_left_over(images):
    data = images()
    train = Batches.of(data, BatchSpec(15, shift=0), 0, "cpu").train
    batches = epoch(train, 0)
    assert len(batches) == len(train) == 2 and all(x.shape == (15, 3, 16, 16) for x, _ in batches)
    pixels = torch.cat([x for x, _ in batches]).flatten(1)
    assert len(pixels.unique(dim=0)) == 30


def test_train_is_normalised_and_evaluation_uses_the_same_numbers(images):
    data = images()
    batches = Batches.of(data, BatchSpec(40, shift=0), 0, "cpu")
    ((x, _),) = epoch(batches.train, 0)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    ((x_val, y_val),) = list(batches.val)
    expected = (
        torch.from_numpy(data.val.x_NCHW).float() / 255 - batches.train.normalize.mean
    ) / batches.train.normalize.std
    assert torch.equal(x_val, expected) and torch.equal(y_val, torch.from_numpy(data.val.y_N))


def test_shift_moves_and_fills_with_black():
    x = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    still, down_right, up = (
        shifted(x, torch.tensor([offset]), 1)[0, 0].tolist() for offset in ([1, 1], [0, 0], [2, 1])
    )
    assert still == x[0, 0].tolist()
    assert down_right == [[0, 0, 0], [0, 1, 2], [0, 4, 5]]
    assert up == [[4, 5, 6], [7, 8, 9], [0, 0, 0]]


def large(tmp_path, images):
    """Random images mapped from a file, as a set that is too large for memory is."""
    data = images()
    splits = {}
    for name, split in data.splits.items():
        np.save(tmp_path / f"{name}.npy", split.x_NCHW)
        splits[name] = Split(np.load(tmp_path / f"{name}.npy", mmap_mode="r"), split.y_N)
    return data, replace(data, **splits)


@pytest.mark.parametrize("readers", [1, 2])
def test_what_is_streamed_from_the_disk_is_what_lies_on_the_device(readers, tmp_path, images):
    data, mapped = large(tmp_path, images)
    spec = BatchSpec(10, shift=2, flip=True, mixup=0.4)
    resident = Batches.of(data, spec, 3, "cpu")
    streamed = Batches.of(mapped, spec, 3, "cpu", gib=0, readers=readers)
    assert type(resident.train.pixels).__name__ == "Resident" and type(streamed.train.pixels).__name__ == "Streamed"
    for number in range(2):
        assert same(epoch(resident.train, number), epoch(streamed.train, number))
    assert same(list(resident.test), list(streamed.test)) and same([resident.val.first(7)], [streamed.val.first(7)])
    assert Batches.of(data, spec, 3, "cpu", gib=1).train.pixels.x_NCHW.dtype == torch.uint8


def test_a_resumed_epoch_starts_where_it_was(tmp_path, images):
    data, mapped = large(tmp_path, images)
    for train in (
        Batches.of(data, BatchSpec(5, shift=1, flip=True), 0, "cpu").train,
        Batches.of(mapped, BatchSpec(5, shift=1, flip=True), 0, "cpu", gib=0).train,
    ):
        whole = epoch(train, 1)
        train.load_state_dict({"epoch": 1, "batch": 3})
        assert same(whole[3:], epoch(train, 1)) and same(whole, epoch(train, 1))


def test_half_of_the_images_are_mirrored_anew_each_epoch(images):
    data = images()
    train = Batches.of(data, BatchSpec(40, flip=True), 0, "cpu").train
    plain = {x.numpy().tobytes() for x in train.normalize(torch.from_numpy(data.train.x_NCHW))}
    turned = {x.numpy().tobytes() for x in train.normalize(torch.from_numpy(data.train.x_NCHW)).flip(3)}
    epochs = [[x.numpy().tobytes() for x in epoch(train, number)[0][0]] for number in range(20)]
    assert all(x in plain or x in turned for drawn in epochs for x in drawn)
    share = np.mean([x in turned for drawn in epochs for x in drawn])
    assert abs(share - 0.5) < 0.06  # 800 draws: 3.4 deviations


def test_normalisation_is_numpys_mean_and_deviation(images):
    data = images()
    normalize = Batches.of(data, BatchSpec(5), 0, "cpu").train.normalize
    x = data.train.x_NCHW / 255
    torch.testing.assert_close(
        normalize.mean.flatten().double(), torch.from_numpy(x.mean((0, 2, 3))), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        normalize.std.flatten().double(), torch.from_numpy(x.std((0, 2, 3), ddof=1)), rtol=1e-6, atol=0
    )
