"""Batches: order and augmentation are a function of (seed, epoch)."""

import torch

from layergraft.data.batches import Batches, BatchSpec, shifted


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
