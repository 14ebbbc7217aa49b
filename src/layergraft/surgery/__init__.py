"""Surgery: how a donor goes into a host. A dataclass for each operation, a file each, which says where the donor stands.

`graft` makes the new network, `calibrated` adjusts it to the host's activations.
"""

from typing import TYPE_CHECKING

from layergraft.surgery.insert import Insert
from layergraft.surgery.operation import Operation
from layergraft.surgery.parallel import Parallel
from layergraft.surgery.replace import Replace

if TYPE_CHECKING:
    from layergraft.surgery.calibrate import calibrated
    from layergraft.surgery.grafting import Graft, Grafted, graft, require_apart, slot_of, under

__all__ = ["Graft", "Grafted", "Insert", "Operation", "Parallel", "Replace", "calibrated", "graft", "require_apart",
           "slot_of", "under"]  # fmt: skip


def __getattr__(name: str) -> object:
    """Look up what needs torch when it is used: the operations are registered without it."""
    if name not in __all__:
        raise AttributeError(f"module 'layergraft.surgery' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"layergraft.surgery.{'calibrate' if name == 'calibrated' else 'grafting'}"), name)
