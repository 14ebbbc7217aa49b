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
    source, target = Digits(classes=classes).load(1), Digits(classes=[0, 1, 2, 3, 4]).load(1)
    assert not rows(source.train) & (rows(target.test) | rows(target.val))


def test_splits_are_stratified():
    data = Digits().load(0)
    shares = [np.bincount(split.y_N) / len(split) for split in (data.train, data.val, data.test)]
    assert np.abs(np.array(shares) - 0.1).max() < 0.01


def test_seed_draws_splits_and_few_shot_images_unless_a_key_fixes_them():
    few = {"train_size": 52, "classes": [3, 1, 4, 0, 2]}
    plain, split, both = (
        [Digits(**few, **fixed).load(seed) for seed in (0, 1)]
        for fixed in ({}, {"split_seed": 0}, {"split_seed": 0, "few_shot_seed": 0})
    )
    for first, second in (plain, split, both):
        assert np.array_equal(first.train.x_NCHW, plain[0].train.x_NCHW)  # seed 0 is 0, whoever says so
        assert sorted(np.bincount(second.train.y_N)) == [10, 10, 10, 11, 11]
    assert rows(plain[0].test) != rows(plain[1].test) and rows(plain[0].val) != rows(plain[1].val)
    assert rows(split[0].train) != rows(split[1].train) and np.array_equal(split[0].test.rows, split[1].test.rows)
    assert both[0].train.rows.tolist() == both[1].train.rows.tolist()
    assert plain[1].seeds == {"split_seed": 1, "few_shot_seed": 1} and both[1].seeds == both[0].seeds
    assert Digits().load(3).seeds == {"split_seed": 3, "few_shot_seed": None}


@pytest.mark.parametrize("split_seed", [0, 7])
def test_a_half_has_the_same_images_whatever_the_split(split_seed):
    def images(half, seed):
        data = Digits(half=half, halves="images", split_seed=seed).load(0)
        return data, set(np.concatenate([split.rows for split in data.splits.values()]).tolist())

    (a, of_a), (b, of_b), (other, of_other) = images("A", 0), images("B", split_seed), images("A", split_seed)
    assert not of_a & of_b and len(of_a | of_b) == 1797 and of_a == of_other
    whole = Digits(split_seed=split_seed).load(0)
    for (
        part,
        split,
    ) in whole.splits.items():  # so a donor of one half knows no test image of a target that has the whole set
        assert {*other.splits[part].rows} | {*b.splits[part].rows} == {*split.rows}
        assert len(other.splits[part]) == pytest.approx(len(split) / 2, abs=30)
    assert (a.test.rows.tolist() == other.test.rows.tolist()) == (split_seed == 0)


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
