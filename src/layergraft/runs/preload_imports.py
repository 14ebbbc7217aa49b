"""All that any run takes, imported: torch, Lightning and what they bring along, without the garbage collector's looks.

Of the million objects that these imports make hardly one is garbage, and each of its looks goes through all of them: a
sixth of the time.
"""

import gc

_collects = gc.isenabled()
gc.disable()
try:
    import layergraft.hosts.resnet_modules  # noqa: F401
    import layergraft.runs.train  # noqa: F401
finally:
    if _collects:
        gc.enable()
