"""The data of a run, written down: which image is in which split, what is in them, and what is in two."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from layergraft.config.data_schema import DataSpec
from layergraft.data.duplicates import near_duplicates
from layergraft.data.image_data import ImageData
from layergraft.store.files import create_once, digest, label, write_atomic, write_json


def written(spec: DataSpec, data: ImageData, outputs: Path) -> dict[str, Any]:
    """What is known of these splits, the same whoever asks, and where it is: outputs/data/KEY/ with data.json and
    split.npz, the rows of train, val and test in the set as its files have it."""
    content = {name: [digest(split.rows.tobytes()), digest(split.y_N.tobytes())] for name, split in data.splits.items()}
    key = label(spec.name, digest([spec.identity(), data.fingerprint, list(data.shape), content]))
    folder = outputs / "data" / key

    def make(unfinished: Path) -> None:
        rows = io.BytesIO()
        arrays: dict[str, Any] = {name: split.rows for name, split in data.splits.items()}
        np.savez_compressed(rows, **arrays)
        write_atomic(unfinished / "split.npz", rows.getvalue())
        write_json(unfinished / "data.json", {"key": key, "spec": spec.identity(), **_facts(data)})

    create_once(folder, make)
    facts: dict[str, Any] = json.loads((folder / "data.json").read_text())
    return facts


def _facts(data: ImageData) -> dict[str, Any]:
    def per_class(y_N: np.ndarray) -> list[int]:
        return [int(n) for n in (y_N.sum(0) if y_N.ndim == 2 else np.bincount(y_N, minlength=data.num_classes))]

    return {
        "fingerprint": data.fingerprint,
        "task": data.task.name,
        "image": list(data.shape),
        "classes": list(data.class_names),
        "images": {name: len(split) for name, split in data.splits.items()},
        "images of each class": {name: per_class(split.y_N) for name, split in data.splits.items()},
        "test images in train": near_duplicates(data.original("train"), data.original("test")),
        "skipped": list(data.skipped),
        "drawn": list(data.drawn),
        "seeds": data.seeds,
    }
