"""Class weights, against scikit-learn; the balanced sampler, by what it draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from tests.data.written import medmnist_arrays

from layergraft.data.batches import Batches, BatchSpec
from layergraft.data.class_balance import class_weights
from layergraft.errors import UserError
from layergraft.metrics.tasks import Task
from layergraft.runs.plan import plan_run


def skewed(images, y_N, task=Task.multi_class, num_classes=4, **balance):
    data = images()
    return replace(data, train=replace(data.train, y_N=y_N), task=task, num_classes=num_classes, **balance)


COUNTS = (4, 1, 25, 10)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))


def test_nothing_is_weighed_unless_it_is_asked_for(images):
    train = Batches.of(images(), BatchSpec(10), 0, "cpu").train
    assert train.class_weights is None and train.image_weights is None


def test_class_weights_are_scikit_learns(images):
    found = class_weights(skewed(images, LABELS, class_weights="balanced"))
    expected = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
    assert found.dtype is torch.float32 and found.tolist() == pytest.approx(expected.tolist())
    assert found[torch.from_numpy(LABELS)].mean().item() == pytest.approx(1)
    # Wrong labels (corrupt.labels) may have left a class without images.
    without = class_weights(skewed(images, LABELS.clip(1), class_weights="balanced"))
    assert without[LABELS.clip(1)].mean().item() == pytest.approx(1) and without.isfinite().all()


def test_a_label_weighs_as_much_more_as_it_is_rarer(images):
    y_NL = (np.arange(40)[:, None] < np.array([10, 30, 0, 40])).astype(np.int64)
    found = class_weights(skewed(images, y_NL, Task.multi_label, class_weights="balanced"))
    assert found.tolist() == pytest.approx(
        [30 / 10, 10 / 30, 1, 1]
    )  # what all have, or none, there is nothing to balance in


def test_the_balanced_sampler_draws_all_classes_alike_and_anew_each_epoch(images):
    data = skewed(images, LABELS, sampler="balanced")
    train, again = (Batches.of(data, BatchSpec(10, shift=1), 3, "cpu").train for _ in range(2))
    orders = torch.stack([train._order(epoch).flatten() for epoch in range(200)])
    assert len(train) == 4 and orders.shape == (200, 40)  # as many images as there are
    drawn = torch.from_numpy(LABELS)[orders]
    assert drawn.flatten().bincount() / drawn.numel() == pytest.approx([0.25] * 4, abs=0.02)  # 4 deviations are 0.019
    assert len(orders.unique()) == 40  # every image of a class
    of_largest = orders[drawn == 2].bincount(minlength=40)[LABELS == 2] / (drawn == 2).sum()
    assert of_largest.tolist() == pytest.approx([1 / 25] * 25, abs=0.02)  # 4 deviations are 0.018
    torch.rand(5)
    assert torch.equal(again._order(7), train._order(7)) and not torch.equal(train._order(7), train._order(8))
    other = Batches.of(data, BatchSpec(10, shift=1), 4, "cpu").train
    assert not torch.equal(other._order(7), train._order(7))


def test_a_balanced_epoch_goes_on_where_it_was(images):
    train = Batches.of(skewed(images, LABELS, sampler="balanced"), BatchSpec(10, shift=1, mixup=0.3), 3, "cpu").train
    whole, rest = list(train.of_epoch(1)), list(train.of_epoch(1, 2))
    assert len(rest) == 2
    for (x, y), (same_x, same_y) in zip(whole[2:], rest, strict=True):
        assert torch.equal(x, same_x) and torch.equal(y, same_y)


def test_several_labels_cannot_be_drawn_alike(tmp_path, config):
    np.savez(tmp_path / "many.npz", **medmnist_arrays(labels=3, channels=1))
    data = ["data=npz", f"data.path={tmp_path / 'many.npz'}", "data.sampler=balanced"]
    line = "data.sampler is balanced, but images of .* have several labels each; data.class_weights=balanced weighs"
    run = ["host=resnet8", "donor=none", "strategy=full", "optim.batch_size=4"]
    with pytest.raises(UserError, match=f"^{line}"):
        plan_run(config(*run, *data))
    plan_run(config(*run, *data[:2], "data.class_weights=balanced"))
    donor = [text.replace("data", "donor.data", 1) for text in data]
    with pytest.raises(UserError, match=f"^donor: {line}"):
        plan_run(config("host=resnet8", f"data@{donor[0]}", *donor[1:]))


def test_a_word_that_is_none_is_refused(config):
    with pytest.raises(UserError, match="unknown data.sampler 'balance'; did you mean 'balanced'"):
        config("data.sampler=balance")
    with pytest.raises(UserError, match="unknown donor.data.class_weights 'even'. There are: none, balanced"):
        config("donor.data.class_weights=even")
