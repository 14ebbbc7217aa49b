"""Streams of chance, whole files, one-line errors."""

import os

import pytest

from layergraft.errors import unknown
from layergraft.seeds import derive_seed
from layergraft.store.files import digest, write_atomic, write_json


def test_streams_are_fixed_and_apart():
    assert derive_seed(0, "order", 1) == 4489457307835839548  # a change here changes every result: raise RESULT_VERSION
    assert len({derive_seed(seed, name) for seed in range(50) for name in ("host", "head", "data")}) == 150
    assert all(0 <= derive_seed(seed, "x") < 2**63 for seed in range(100))


def test_digest_keeps_order_and_type():
    assert digest({"a": 1, "b": 2}) != digest({"b": 2, "a": 1})
    assert digest(1.0) != digest(1)
    with pytest.raises(ValueError):
        digest(float("nan"))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    before = path.read_text()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, "half")
    assert path.read_text() == before and os.listdir(tmp_path) == ["record.json"]


def test_unknown_names_lists_and_guesses():
    assert (
        str(unknown("site", "erly", ["early", "late"]))
        == "unknown site 'erly'; did you mean 'early'? There are: early, late"
    )
    assert str(unknown("site", "zzz", ["early"])) == "unknown site 'zzz'. There are: early"
    assert str(unknown("run", "x", range(50))).endswith("38, 39, ... (10 more)")
