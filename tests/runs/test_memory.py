"""The memory that a run takes at most."""

import numpy as np
import pytest

from layergraft.runs.memory import peak_memory


def test_the_peak_is_of_what_was_held_since_the_start():
    before = np.ones(300 * 2**20, np.uint8)  # freed before it begins: no part of it
    del before
    peak = peak_memory("cpu")
    if (first := peak()) is None:
        pytest.skip("this system does not tell")
    held = np.ones(200 * 2**20, np.uint8)
    assert peak() - first >= 190 * 2**20
    del held
    assert peak() - first >= 190 * 2**20
    assert peak_memory("cpu")() - first < 190 * 2**20
