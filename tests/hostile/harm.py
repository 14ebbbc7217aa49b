"""What the tests of hostile files share: doing harm to bytes, and objects that act when they are unpickled."""

import os

import pytest


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        return os.mkdir, (str(self.where),)


def damaged(whole, rng):
    """Cut short, with a bit turned, with a part zeroed, or with a part twice."""
    data, at = bytearray(whole), rng.randrange(len(whole))
    kind = rng.choice(["cut", "bit", "bit", "bit", "zero", "twice"])
    if kind == "cut":
        return bytes(data[:at])
    if kind == "bit":
        data[at] ^= 1 << rng.randrange(8)
    if kind == "zero":
        data[at : at + 16] = bytes(len(data[at : at + 16]))
    return bytes(data[:at] + data[max(0, at - 32) :]) if kind == "twice" else bytes(data)


def number(fast, slow):
    return pytest.mark.parametrize("number", [fast, pytest.param(slow, marks=pytest.mark.slow)])
