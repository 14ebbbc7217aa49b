"""Few-shot training splits: a few images of each class, the same number or by the classes' shares."""

from __future__ import annotations

import numpy as np

from layergraft.config.data_schema import DataSpec
from layergraft.data.image_data import ImageData, Split
from layergraft.errors import UserError, counted, require
from layergraft.metrics.tasks import Task
from layergraft.seeds import derive_seed

UNBALANCED = 1.5  # largest class over smallest, from which a balanced draw is told to be another mix than the set's


def few_shot(pool: Split, spec: DataSpec, num_classes: int, seed: int) -> Split:
    """`spec.train_size` images of `pool` in all, the same number of each class give or take one or, where `spec.few_shot` is
    stratified, by the classes' shares; or `spec.train_per_class` of each. Drawn by `seed`. Of a multi-label set: at random.

    Raises UserError where a class has too few, or would get none.
    """
    key = "train_size" if spec.train_size is not None else "train_per_class"
    given = getattr(spec, key)
    wanted, name = given if key == "train_size" else given * num_classes, spec.name
    rng = np.random.default_rng(derive_seed(seed, "few-shot"))
    if pool.y_N.ndim == 2:
        require(key == "train_size", f"data.train_per_class: {name} has several labels an image; train_size is in all")
        require(wanted <= len(pool), f"data.train_size is {wanted}; {name} has {len(pool)} training images")
        return pool.take(np.sort(rng.choice(len(pool), wanted, replace=False)))
    if wanted < num_classes:
        raise UserError(
            f"data.train_size is {wanted}, but {name} has {num_classes} classes here and each needs an image"
        )
    chosen = []
    numbers = [wanted // num_classes + (label < wanted % num_classes) for label in range(num_classes)]
    if spec.few_shot == "stratified":
        numbers = _by_shares(pool, wanted, num_classes, name)
    for label, number in enumerate(numbers):
        members = np.flatnonzero(pool.y_N == label)
        if number > len(members):
            raise UserError(
                f"data.{key} is {given}, which takes {number} images of class {label} of {name}; its training split has {len(members)} (of {len(pool)} in all)"
            )
        chosen.append(rng.choice(members, number, replace=False))
    return pool.take(np.sort(np.concatenate(chosen)))


def _by_shares(pool: Split, wanted: int, num_classes: int, name: str) -> list[int]:
    """How many of `wanted` images each class gets by its share of `pool`: largest-remainder rounding (Hamilton's method), ties to the
    lower label. Raises UserError where there are too few images, or a class would get none."""
    number_C = np.bincount(pool.y_N, minlength=num_classes)
    require(wanted <= len(pool), f"data.train_size is {wanted}; {name} has {len(pool)} training images")
    quota_C = number_C * wanted / len(pool)
    found_C = np.floor(quota_C).astype(int)
    left = wanted - found_C.sum()
    found_C[np.argsort(found_C - quota_C, kind="stable")[:left]] += 1
    if not found_C.all():
        rarest = int(number_C.argmin())
        share = f"{100 * number_C[rarest] / len(pool):.2g}% of the training images"
        enough = f"data.train_size={-(-len(pool) // int(number_C[rarest]))} is enough"
        none = f"data.train_size is {wanted}, of which class {rarest} of {name} ({share}) would get none"
        raise UserError(
            f"{none} with data.few_shot=stratified; {enough}, and data.few_shot=balanced draws all classes alike"
        )
    return [int(number) for number in found_C]


def mix_note(pool: ImageData, few: Split, spec: DataSpec) -> tuple[str, ...]:
    """That a balanced draw has other shares of the classes than the set that it is drawn from; none where it has not."""
    if pool.task is Task.multi_label or spec.few_shot == "stratified":
        return ()
    # Of all splits: a small training split of a balanced set differs from it by chance.
    number_C = np.bincount(np.concatenate([split.y_N for split in pool.splits.values()]), minlength=pool.num_classes)
    if number_C.max() <= UNBALANCED * number_C.min():
        return ()
    low, high = (
        f"{100 * number_C[label] / number_C.sum():.1f}% (class {pool.class_names[label]})"
        for label in (number_C.argmin(), number_C.argmax())
    )
    draw = f"the {counted(len(few), 'few-shot image')} of {spec.name} have {100 / pool.num_classes:.1f}% of each class"
    instead = "data.few_shot=stratified shares out data.train_size so"
    return (f"{draw}, the set has from {low} to {high}; {instead}",)
