"""The digits: splits, few-shot, class subsets."""

import numpy as np
import pytest

from layergraft.data import Digits
from layergraft.errors import UserError


def rows(split):
    return {image.tobytes() for image in split.x_NCHW}


def test_no_image_is_in_two_splits():
    data = Digits().load(0)
    assert data.train.x_NCHW.shape[1:] == (1, 8, 8) and data.train.x_NCHW.dtype == np.uint8
    assert len(data.train) + len(data.val) + len(data.test) == 1797
    assert not rows(data.train) & rows(data.test) and not rows(data.val) & (rows(data.test) | rows(data.train))


@pytest.mark.parametrize("classes", [[], [0, 1, 2], [4, 3, 2, 1, 0], [3, 4, 5, 6]])
def test_no_selection_of_classes_trains_on_what_another_tests_on(classes):
    source, target = Digits(classes=classes).load(0), Digits(classes=[0, 1, 2, 3, 4]).load(1)
    assert not rows(source.train) & (rows(target.test) | rows(target.val))


def test_splits_are_stratified():
    data = Digits().load(0)
    shares = [np.bincount(split.y_N) / len(split) for split in (data.train, data.val, data.test)]
    assert np.abs(np.array(shares) - 0.1).max() < 0.01


def test_seed_draws_the_few_shot_images_and_nothing_else():
    first, second = (Digits(train_size=52, classes=[3, 1, 4, 0, 2]).load(seed) for seed in (0, 1))
    assert rows(first.train) != rows(second.train)
    assert np.array_equal(first.test.x_NCHW, second.test.x_NCHW) and np.array_equal(first.val.x_NCHW, second.val.x_NCHW)
    assert sorted(np.bincount(first.train.y_N)) == [10, 10, 10, 11, 11]
    again = Digits(train_size=52, classes=[3, 1, 4, 0, 2]).load(0)
    assert np.array_equal(again.train.x_NCHW, first.train.x_NCHW)


def test_classes_are_relabelled_in_the_order_given():
    whole, part = Digits().load(0), Digits(classes=[7, 5]).load(0)
    assert part.num_classes == 2
    sevens = rows(part.test) & {x.tobytes() for s in (whole.train, whole.val, whole.test) for x in s.x_NCHW[s.y_N == 7]}
    assert sevens == {image.tobytes() for image in part.test.x_NCHW[part.test.y_N == 0]}


@pytest.mark.parametrize(
    "spec, message",
    [
        (Digits(classes=[0, 10]), "'10'"),
        (Digits(classes=[4]), "a task needs 2 classes or more"),
        (Digits(train_size=5000), "takes 500 images of class 0"),
        (Digits(train_size=3), "has 10 classes here and each needs an image"),
    ],
)
def test_what_the_set_does_not_have(spec, message):
    with pytest.raises(UserError, match=message):
        spec.load(0)
