"""Donors: the layers that are loaded into hosts, and the controls that stand in for them. A dataclass a file.

Each says what layer it is for a place in a host (`architecture`); `donor_cache.get_or_create` makes it, once, and reads it from
`outputs/donors/<key>/` ever after.
"""

from layergraft.donors.analytic import GaborDonor, PatchDonor
from layergraft.donors.end_to_end import EndToEndDonor
from layergraft.donors.extracted import ExtractedDonor
from layergraft.donors.none import NoDonor
from layergraft.donors.random import RandomDonor
from layergraft.donors.trained import TrainedDonor

__all__ = ["EndToEndDonor", "ExtractedDonor", "GaborDonor", "NoDonor", "PatchDonor", "RandomDonor", "TrainedDonor"]
