"""Few-shot training splits: balanced, or by the classes' shares."""

import numpy as np
import pytest

from layergraft.config.registry import validate
from layergraft.data import Digits, Npz
from layergraft.errors import UserError

NUMBERS = (140, 41, 19)


@pytest.fixture
def skewed(tmp_path):
    """Function: keys -> a set of which 70%, 20.5% and 9.5% of the training images are of its three classes."""
    rng, arrays = np.random.default_rng(0), {}
    for part, numbers in (("train", NUMBERS), ("val", (5, 5, 5)), ("test", (5, 5, 5))):
        arrays[f"{part}_images"] = rng.integers(0, 256, (sum(numbers), 8, 8), np.uint8)
        arrays[f"{part}_labels"] = np.repeat(np.arange(3), numbers)
    np.savez(tmp_path / "set.npz", **arrays)
    return lambda **keys: Npz(path=str(tmp_path / "set.npz"), **keys)


@pytest.mark.parametrize("size, numbers", [
    (10, [7, 2, 1]),  # quotas 7, 2.05 and 0.95
    (6, [4, 1, 1]),  # 4.2, 1.23 and 0.57: the largest remainder is the last's
    (200, [*NUMBERS]),
])  # fmt: skip
def test_a_stratified_draw_follows_the_sets_shares(skewed, size, numbers):
    first, second = (skewed(train_size=size, few_shot="stratified").load(seed) for seed in (0, 1))
    assert np.bincount(first.train.y_N).tolist() == np.bincount(second.train.y_N).tolist() == numbers
    assert first.notes == () and (size == 200) == np.array_equal(first.train.rows, second.train.rows)


def test_a_class_without_an_image_is_refused_and_the_advice_works(skewed):
    with pytest.raises(
        UserError, match=r"data.train_size is 3, of which class 2 of npz \(9.5% of .*data.train_size=11 is enough"
    ):
        skewed(train_size=3, few_shot="stratified").load(0)
    assert np.bincount(skewed(train_size=11, few_shot="stratified").load(0).train.y_N).min() == 1
    with pytest.raises(UserError, match="data.train_size is 201; npz has 200 training images"):
        skewed(train_size=201, few_shot="stratified").load(0)
    with pytest.raises(UserError, match="data.few_shot is stratified, but data.train_per_class takes the same number"):
        validate(skewed(train_per_class=5, few_shot="stratified"), "data")


def test_a_balanced_draw_from_a_skewed_set_says_so(skewed):
    (note,) = skewed(train_size=30).load(0).notes
    y_N = np.concatenate([split.y_N for split in skewed().load(0).splits.values()])
    shares = [100 * np.mean(y_N == label) for label in range(3)]
    assert shares[0] > shares[1] > shares[2]
    of_set = f"the set has from {shares[2]:.1f}% (class 2) to {shares[0]:.1f}% (class 0); "
    assert note.startswith(f"the 30 few-shot images of npz have 33.3% of each class, {of_set}")
    assert (
        skewed(train_per_class=5).load(0).notes
        and not skewed().load(0).notes
        and not any(Digits(half="B", halves="images", train_size=50).load(seed).notes for seed in range(20))
    )


def test_a_set_with_splits_of_its_own_is_the_same_for_every_seed(skewed):
    first, second = skewed().load(0), skewed().load(1)
    assert first is second and first.drawn == () and first.seeds == {"split_seed": None, "few_shot_seed": None}
    few = [skewed(train_size=30, few_shot_seed=4).load(seed) for seed in (0, 1)]
    assert few[0] is few[1] and few[0].seeds["few_shot_seed"] == 4
