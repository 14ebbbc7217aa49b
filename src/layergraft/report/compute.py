"""What each arm costs in all: its own training, its donor's, its host's pretraining, and its tuning. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from layergraft.report.contrasts import Design

PARTS = ("run", "donor", "pretraining", "tuning")


def charged(runs: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """`runs` with what each is charged with: `run_images`, `donor_images`, `pretraining_images`, `tuning_images`, and the same in seconds.
    A donor and a host are charged to every run that has them; the tuning of an arm is shared out among its seeds."""
    cell = ["setting", "site", "arm"]
    cost = (tuned if len(tuned) else pd.DataFrame(columns=[*cell, "images", "seconds"]))[[*cell, "images", "seconds"]]
    seeds = runs.groupby(cell, sort=False).seed.nunique().rename("num_seeds").reset_index()
    shared = runs[cell].merge(cost, on=cell, how="left").merge(seeds, on=cell, how="left").set_index(runs.index)
    found = runs.assign(run_images=runs.images, run_seconds=runs.fit_seconds)
    for unit in ("images", "seconds"):
        found[f"tuning_{unit}"] = shared[unit].astype(float).fillna(0.0) / shared.num_seeds
    return found


def compute(design: Design, tuned: pd.DataFrame, accuracies: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """A row an arm: medians over runs of what each of PARTS takes, in `images` and in `seconds`; the mean validation accuracy `after` all
    epochs, and `at_budget`: at the time that the cheapest arm of the setting takes with the same seed, its donor and all that is charged
    included; nan where in some run training would not have begun. A schedule that was made for that time may do better."""
    runs = charged(design.runs, tuned)
    runs = runs.assign(made=runs[[f"{part}_seconds" for part in PARTS[1:]]].sum(axis=1))
    runs = runs.assign(total=runs.made + runs.run_seconds)
    per_seed = runs.groupby(
        ["setting", "seed", "arm"], sort=False
    ).total.mean()  # over sites; runs of a seed share a host
    budget = runs.join(per_seed.groupby(["setting", "seed"]).min().rename("budget"), on=["setting", "seed"]).budget
    left = ((budget - runs.made) / runs.run_seconds).clip(upper=1.0)
    known = [accuracies.get(key) or [math.nan] for key in runs.key]
    # Of a curve the epoch that had ended by then; the start is no point of it.
    ended = [
        math.floor(len(curve) * share + 1e-9) if share == share else 0 for curve, share in zip(known, left, strict=True)
    ]
    runs = runs.assign(
        after=[curve[-1] for curve in known],
        at_budget=[curve[number - 1] if number > 0 else math.nan for curve, number in zip(known, ended, strict=True)],
    )
    rows = []
    for arm, there in runs.groupby("arm", sort=False):
        row = {unit: [float(there[f"{part}_{unit}"].median()) for part in PARTS] for unit in ("images", "seconds")}
        begun = there.at_budget.notna().all()
        rows.append(
            {
                "arm": arm,
                **row,
                "after": float(there.after.mean()),
                "at_budget": float(there.at_budget.mean()) if begun else np.nan,
            }
        )
    return pd.DataFrame(rows)
