"""Predictions of runs: what is written is what is read."""

import numpy as np
import pytest

from layergraft.errors import UserError
from layergraft.store.predictions import PREDICTIONS, labels_and_logits, read_predictions, write_predictions

LOGITS = np.random.default_rng(0).normal(size=(6, 11)).astype(np.float32)
ROWS = np.array([5, 3, 2**40, 0, 1, 9])


@pytest.mark.parametrize("labels", [np.arange(6) % 3, np.arange(66).reshape(6, 11) % 2], ids=["label", "labels"])
def test_what_is_written_is_what_is_read(labels, tmp_path):
    write_predictions(tmp_path, ROWS, labels, LOGITS)
    table = read_predictions(tmp_path)
    named = ["label"] if labels.ndim == 1 else [f"label_{k}" for k in range(11)]
    assert list(table) == ["row", *named, *(f"logit_{k}" for k in range(11))]
    assert table.row.tolist() == ROWS.tolist() and set(table.filter(like="logit").dtypes) == {np.dtype("float32")}
    found_labels, found_logits = labels_and_logits(table)
    assert np.array_equal(found_labels, labels) and np.array_equal(found_logits, LOGITS)
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS]


def test_what_is_gone_or_damaged_is_named(tmp_path):
    with pytest.raises(UserError, match="predictions.parquet is not there; exec.rerun=true does the run again"):
        read_predictions(tmp_path)
    write_predictions(tmp_path, ROWS, np.arange(6), LOGITS)
    whole = (tmp_path / PREDICTIONS).read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        (tmp_path / PREDICTIONS).write_bytes(content)
        with pytest.raises(UserError, match="predictions.parquet is damaged: "):
            read_predictions(tmp_path)
