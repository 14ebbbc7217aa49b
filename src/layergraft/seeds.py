"""Common random numbers: every use of chance draws from a stream of its own, derived from (seed, name).

Two arms with the same seed then differ in the arm alone: the host's initial weights, the few images, their
order and their augmentation are the same, whatever else one arm draws.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: object) -> int:
    """The 63-bit seed of the stream `names` under `seed`: `derive_seed(0, "order", epoch)`."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
