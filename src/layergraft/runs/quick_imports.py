"""Imports of much at once, without the garbage collector's looks.

Of the million objects that torch, Lightning and what they bring along make hardly one is garbage, and each of the collector's looks
goes through all of them: a sixth of the time.
"""

import gc
import importlib
from types import ModuleType


def imported(name: str) -> ModuleType:
    """Import the module `name`; the collector is afterwards as it was before."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if collects:
            gc.enable()
