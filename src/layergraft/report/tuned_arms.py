"""How each arm was tuned before arms were compared: `sweeps.tuning` writes what is read here. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from layergraft.errors import counted, listing, require
from layergraft.store.records import read_json
from layergraft.store.sweep_folder import TUNED

if TYPE_CHECKING:
    from layergraft.report.contrasts import Design


@dataclass(frozen=True)
class Tuning:
    """The tuning of one sweep."""

    grid: Mapping[str, Sequence[Any]]
    """Tuned key -> the values that were tried."""
    seeds: tuple[int, ...]
    """That the tuning used, and the comparison does not."""
    arms: Mapping[str, Mapping[str, Any]]
    """A digest of each arm -> what `sweeps.tuning` has found for it."""
    arm_of: Mapping[str, str]
    """Key of a compared run -> the digest of its arm."""


def read_tuning(folder: Path, sweep: Mapping[str, Any]) -> Tuning | None:
    """The tuning of a sweep, of which `sweep` is the plan; None where nothing was tuned. Raises UserError while it is being tuned:
    the runs of the plan are then those of the tuning."""
    if "tuned" not in sweep:
        return None
    again = "its arms are still being tuned, so there is nothing to compare yet; the same command goes on with it"
    require(bool(sweep["tuned"]), f"{folder}: {again}: {sweep['command']}")
    found = read_json(folder / TUNED)
    return Tuning(found["tune"], tuple(found["seeds"]), {arm["config"]: arm for arm in found["arms"]}, sweep["tuned"])


def tuned_arms(design: Design, tunings: Sequence[Tuning]) -> pd.DataFrame:
    """A row a setting, site and arm that was tuned: `chosen` (in words), `acc` (mean validation accuracy with it on the tuning's
    seeds), `num_seeds`, `at_edge` (keys), and what tuning took: `runs`, `seconds`, `images`."""
    rows = []
    for tuning in tunings:
        known = design.runs.assign(digest=design.runs.key.map(tuning.arm_of)).dropna(subset="digest")
        for _, there in known.groupby(["setting", "site", "arm", "digest"], sort=False):
            arm = tuning.arms[there.digest.iloc[0]]
            if not arm["chosen"]:  # none of the keys does anything to it
                continue
            best = next(tried for tried in arm["tried"] if tried["values"] == arm["chosen"])
            scores = [acc for acc, _ in best["scores"].values()]
            rows.append({
                **there.iloc[0][["setting", "arm", *(name for name in design.axes if name != "seed")]], "tried": arm["tried"], "values": arm["chosen"],
                "chosen": ", ".join(f"{key} = {value}" for key, value in arm["chosen"].items()),
                "acc": float(np.mean(scores)), "num_seeds": len(scores), "at_edge": arm["at_edge"],
                "runs": arm["runs"], "seconds": arm["seconds"], "images": arm["images"],
            })  # fmt: skip
    return pd.DataFrame(rows)


def tuning_curves(arms: pd.DataFrame) -> pd.DataFrame:
    """A row a tuned key, value and row of `arms` (`tuned_arms`): `acc`, the mean validation accuracy over the `num_seeds` that
    tried it, with the best of the other keys' values; and whether the arm `takes` it."""
    rows = []
    for arm in arms.to_dict("records"):
        shown = {name: value for name, value in arm.items() if name not in ("tried", "values", "at_edge")}
        cell = arm["setting"] if arm["site"] == "-" else f"{arm['setting']}, {arm['site']}"
        for key, value in dict.fromkeys(pair for tried in arm["tried"] for pair in tried["values"].items()):
            such = [
                (len(one["scores"]), _mean(one["scores"])) for one in arm["tried"] if one["values"].get(key) == value
            ]
            num_seeds, acc = max((one for one in such if not np.isnan(one[1])), default=(0, np.nan))
            rows.append({**shown, "value": value, "acc": acc, "num_seeds": num_seeds, "cell": f"{key}: {cell}",
                         "takes": arm["values"][key] == value})  # fmt: skip
    return pd.DataFrame(rows).dropna(subset="acc")


def _mean(scores: Mapping[str, Sequence[float | None]]) -> float:
    return float(np.mean([np.nan if acc is None else acc for acc, _ in scores.values()]))


def notes(design: Design, tunings: Sequence[Tuning], arms: pd.DataFrame) -> list[str]:
    """What a reader must know of how the arms came by their learning rates: a line each."""
    if not tunings:
        rates, strategies = design.runs.lr.dropna().unique(), design.runs.strategy.nunique()
        if len(rates) != 1 or strategies < 2:
            return []
        alone = (
            f"all arms train at optim.lr = {rates[0]:g}, so part of a difference between strategies may be the rate's"
        )
        return [f"{alone}; hydra.sweeper.tune compares each arm at its own best rate"]
    keys = listing(dict.fromkeys(key for tuning in tunings for key in tuning.grid))
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(seed for tuning in tunings for seed in tuning.seeds))
    told = [
        f"each arm has the {keys} that validated best for it on seeds {seeds}, which are not among those compared here"
    ]
    edge = arms[arms.at_edge.map(bool)] if len(arms) else arms
    if len(edge):
        first = edge.iloc[0]
        such = f"{first.arm} ({first.setting}, {first.site})"
        told.append(
            f"the best value is at the edge of its grid for {counted(len(edge), 'tuned arm')} of {len(arms)}, such as {such}: a wider grid may be better"
        )
    return told
