"""Surgery: how a donor goes into a host. `graft` makes the new network, `calibrated` fits it to the host's activations."""

from layergraft.surgery.calibrate import calibrated
from layergraft.surgery.operations import Graft, Grafted, graft, require_apart, slot_of, under

__all__ = ["Graft", "Grafted", "calibrated", "graft", "slot_of", "require_apart", "under"]
