"""Keys and choices that have been renamed or removed: an old one gets one line with what to use instead, for one release."""

from __future__ import annotations

import re

RENAMED = {  # \1 is a name of the user's
    r"donor\.k": r"donor.aux_depth",
    r"surgery\.fit": r"surgery.channel_matching",
    r"surgery\.start": r"surgery.adapter_init",
    r"surgery\.where": r"surgery.position",
    r"strategy\.anchor": r"strategy.l2_sp",
    r"strategy\.auto": r"strategy.tensor_lr",
    r"strategy\.phases\.([^.]+)\.top_down": r"strategy.phases.\1.gradual_unfreeze",
    r"strategy\.phases\.([^.]+)\.statistics": r"strategy.phases.\1.batch_norm_statistics",
    r"strategy=scratch": r"donor=none and strategy=full",
    r"strategy\.graft": r"donor=none",
    r"exec\.readers": r"exec.reader_threads",
}
REMOVED = {
    r"exec\.resume": "an interrupted run goes on from its checkpoint by itself",
    r"exec\.traceback": "HYDRA_FULL_ERROR=1 in the environment shows where an error arose",
    r"strategy=auto_snr": "strategy=auto_rgn, which did better in its authors' experiments, is still there",
    r"strategy\.split\.([^.]+)\.min_scale": "strategy.split.GROUP.decay is all that sets how rates decay",
}


def renamed(old: str) -> str | None:
    """The line to print for a key, or a choice GROUP=NAME, that has another name now or is gone; None for any other."""
    for pattern, new in RENAMED.items():
        if found := re.fullmatch(rf"{pattern}(\..*)?", old):
            return f"{old} was renamed; use {found.expand(new)}{found[found.re.groups] or ''}"
    why = next((why for pattern, why in REMOVED.items() if re.fullmatch(rf"{pattern}(\..*)?", old)), None)
    return None if why is None else f"{old} was removed; {why}"
