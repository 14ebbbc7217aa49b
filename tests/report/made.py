"""Runs by formula, as `report.table.tidy` gives them."""

import numpy as np
import pandas as pd

from layergraft.config.metric_registry import lookup
from layergraft.report.contrasts import design
from layergraft.report.table import AXES, MEASURED, TOLD, UNTRAINED, Runs


def rows(accuracies, **axes):
    """Runs by seed of one arm; keys that are no axes were swept."""
    base = {"strategy": "full", "site": "early", "host": "h", "donor": "trained", "data": "d"} | axes
    name = ".".join(map(str, base.values()))
    return [
        {
            "key": f"{name}.{seed}",
            "status": "completed",
            **base,
            "seed": seed,
            "test/acc": float(a),
            "val/acc": float(a),
            "val/aulc": float(a),
        }
        for seed, a in accuracies.items()
    ]


def no_graft(accuracies, **axes):
    return rows(accuracies, **({"strategy": "full", "donor": "none", "site": "-"} | axes))


def runs_of(*groups):
    table = pd.DataFrame([row for group in groups for row in group])
    known = ("key", "status", "drift", *AXES, *TOLD, *MEASURED)
    swept = [name for name in table if name not in known and "/" not in name]
    table[swept] = table[swept].map(
        lambda value: "-" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)
    )
    told = {"host_from": UNTRAINED, **dict.fromkeys([*TOLD[1:], *MEASURED], np.nan)}
    table = table.assign(**{name: value for name, value in told.items() if name not in table})
    units = {name: known.unit for name in table if (known := lookup(name))}
    return Runs(table, swept, units=units)


def design_of(*groups):
    return design(runs_of(*groups))
