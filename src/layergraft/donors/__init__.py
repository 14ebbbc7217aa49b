"""Donors: the layers that are loaded into hosts, and the controls that stand in for them. A dataclass a file.

Each says what layer it is for a site (`geometry`) and comes by its weights (`obtain`), trained once and then read
from `outputs/donors/<key>/`.
"""

from layergraft.donors.none import NoDonor
from layergraft.donors.random import RandomDonor
from layergraft.donors.trained import TrainedDonor

__all__ = ["NoDonor", "RandomDonor", "TrainedDonor"]
