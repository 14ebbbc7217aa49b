"""What loading a layer that was trained alone does to a host: the shock before the first step, the recovery, and what is left of
it after tuning, by site. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from layergraft.report.contrasts import NO_GRAFT, Design, paired, whole_cells
from layergraft.report.table import UNTRAINED, WEIGHTS
from layergraft.stats import Difference, complete, gain_of_picking, mean_difference, pick, together_where_known

CALIBRATE = "surgery.calibrate"
SHOCKS = ("shock/acc", "shock/loss")
MEBIBYTE = 2**20
PLACES = ("early", "middle", "late")
TRAINED = "a layer trained on its own"
LAYERS = {
    "a layer cut from a trained network": ("extracted", "end_to_end"),
    "an analytic layer": ("gabor", "pca", "whitening"),
}


@dataclass(frozen=True)
class Recovery:
    """How some runs got back to the intact host's validation loss."""

    runs: int
    recovered: int
    median: float
    """Steps of the median run, inf where it never did."""


@dataclass(frozen=True)
class SiteEffect:
    """What loading a layer at one site did: means over the arms and settings of each seed."""

    site: str
    difference: Difference | None
    """Of test accuracy, to the same host without a graft; the sites are one family. None where no seed has every arm."""
    lost: tuple[int, ...]
    """Seeds that lack an arm or setting."""
    shock: dict[str, Difference | None]
    """shock/acc, shock/loss -> grafted less intact at step 0."""
    recovery: Recovery | None
    best: str | None
    """The arm with the highest validation accuracy, mean over seeds and settings; None where there is one arm alone."""
    best_gain: Difference | None
    """Of picking so, as in `best_arms`; the sites are one family."""


@dataclass(frozen=True)
class Room:
    """Accuracies in % of a host without a graft."""

    host: str
    before: float
    """On the validation images, before the first step."""
    after: float
    test: float


@dataclass(frozen=True)
class Loading:
    """What loading layers that learned something did to hosts whose weights have one origin."""

    host_from: str
    layer: str
    """What was loaded, in words."""
    hosts: tuple[str, ...]
    strategies: tuple[str, ...]
    num_arms: int
    num_settings: int
    sites: list[SiteEffect]
    mean: Difference | None
    """Over the sites."""
    recovery: Recovery | None
    """Over the sites."""
    has_new_head: bool
    shares_host: bool
    """Whether all seeds of a host start from the same trained weights."""
    host_acc: float
    """Mean, on the data that the hosts were pretrained on; nan where that is not known."""
    donor_acc: tuple[float, float]
    """Mean and lowest, on the donors' own data; nan where that is not known."""
    room: list[Room]

    @property
    def has_shock(self) -> bool:
        return any(any(site.shock.values()) for site in self.sites)

    @property
    def is_trained(self) -> bool:
        return self.host_from != UNTRAINED


def loadings(design: Design) -> list[Loading]:
    """One for each origin of the hosts' weights, hosts with trained weights first; none without runs of `no graft`. Of layers
    trained on their own, or where there are none, of the next of LAYERS."""
    if not len(design.arm(NO_GRAFT)):
        return []
    learned = design.learned(paired(design, NO_GRAFT, "test/acc"))
    layers = learned.donor.map(
        lambda donor: next((layer for layer, names in LAYERS.items() if donor in names), TRAINED)
    )
    layer = next((layer for layer in (TRAINED, *LAYERS) if layer in set(layers)), TRAINED)
    found = [
        _loading(design, layer, str(origin), runs)
        for origin, runs in learned[layers == layer].groupby("host_from", sort=False)
    ]
    known = [loading for loading in found if any(site.difference for site in loading.sites)]
    return sorted(known, key=lambda loading: not loading.is_trained)


def _loading(design: Design, layer: str, origin: str, runs: pd.DataFrame) -> Loading:
    shocked = runs if origin != UNTRAINED else runs[:0]  # what has learned nothing can lose nothing
    names = sorted(map(str, runs.site.unique()), key=lambda site: PLACES.index(site) if site in PLACES else len(PLACES))
    sites = [_site(site, runs[runs.site == site], shocked[shocked.site == site]) for site in names]
    differences = together_where_known([site.difference for site in sites])
    gains = together_where_known([site.best_gain for site in sites])
    sites = [
        replace(site, difference=difference, best_gain=gain)
        for site, difference, gain in zip(sites, differences, gains, strict=True)
    ]
    networks = runs.groupby([name for name in design.of_setting if name.startswith("host")]).host_network
    shares = networks.nunique().eq(1).all() and runs.host_network.notna().all() and runs.seed.nunique() > 1
    intact = design.arm(NO_GRAFT)
    intact = intact[intact.host_from == origin]
    hosts, strategies = (tuple(map(str, runs[name].unique())) for name in ("host", "strategy"))
    if origin == WEIGHTS and runs.host_network.nunique() == 1:
        origin = f"with the weights {Path(runs.host_network.iloc[0]).name}"
    return Loading(
        origin, layer, hosts, strategies, num_arms=runs.arm.nunique(), num_settings=runs.setting.nunique(), sites=sites,
        mean=_over(runs, "gain", ["setting", "arm", "site"])[0], recovery=recovery(shocked), has_new_head=bool((runs["head"] == "new").any()),
        shares_host=bool(shares), host_acc=float(runs.host_acc.mean()),
        donor_acc=(float(runs.donor_acc.mean()), float(runs.donor_acc.min())), room=_room(intact),
    )  # fmt: skip


def _site(site: str, runs: pd.DataFrame, shocked: pd.DataFrame) -> SiteEffect:
    difference, lost = _over(runs, "gain", ["setting", "arm"])
    best, gain = _best(runs) if runs.arm.nunique() > 1 else (None, None)
    shock = {name: _over(shocked, name, ["setting", "arm"])[0] for name in SHOCKS if name in runs}
    return SiteEffect(site, difference, lost, shock, recovery(shocked), best, gain)


def _over(runs: pd.DataFrame, column: str, cells: Sequence[str]) -> tuple[Difference | None, tuple[int, ...]]:
    """The mean of `column` over the cells, one figure a seed; and the seeds that lack a cell."""
    known = runs.dropna(subset=column)
    if not len(known):
        return None, ()
    value_SC, lost, _ = whole_cells(known, column, cells)
    return mean_difference(value_SC.mean(1)) if len(value_SC) else None, lost


def recovery(runs: pd.DataFrame) -> Recovery | None:
    """Of the runs that can tell; None where there is none."""
    if not {"steps_to/recover", *SHOCKS} <= {*runs}:
        return None
    steps = runs.dropna(subset=["steps_to/recover", "shock/loss"])["steps_to/recover"]
    return Recovery(len(steps), int(np.isfinite(steps).sum()), float(steps.median())) if len(steps) else None


def _best(runs: pd.DataFrame) -> tuple[str | None, Difference | None]:
    """The arm that validates best over seeds and settings, and what picking it gains: each seed's gain is of the arm that the
    other seeds pick."""

    def table(column: str) -> pd.DataFrame:
        by_setting = runs.groupby(["seed", "arm", "setting"], sort=False)[column].mean().unstack("setting")
        return by_setting.mean(axis=1, skipna=False).unstack("arm")

    val = table("val/acc")
    seeds_S, arms_A = complete(val.to_numpy())
    val = val.loc[seeds_S, arms_A]
    if not len(val):
        return None, None
    best, picks_S = pick(val.to_numpy())
    gain = table("gain").reindex(index=val.index, columns=val.columns)
    return str(val.columns[best]), gain_of_picking(gain.to_numpy(), picks_S)


def _room(intact: pd.DataFrame) -> list[Room]:
    """Of runs without a graft, with `full` where there are such."""
    if (intact.strategy == "full").any():
        intact = intact[intact.strategy == "full"]
    named = ["step0/acc", "val/acc", "test/acc"]
    if not {*named} <= {*intact}:
        return []
    means = intact.dropna(subset=named).groupby("host", sort=False)[named].mean()
    return [Room(str(host), *map(float, row)) for host, row in zip(means.index, means.to_numpy(), strict=True)]


def shocks(design: Design) -> pd.DataFrame:
    """A row a setting, site and kind of donor: the `difference` at step 0, grafted less intact, in points of validation
    accuracy. The strategy has done nothing yet, so its arms count as one."""
    if "shock/acc" not in design.runs:
        return pd.DataFrame()
    known = design.runs.dropna(subset="shock/acc")
    cells = known.groupby(["setting", "site", "kind"], sort=False)
    axes = [name for name in design.axes if name != "seed" and name.split(".")[0] != "strategy"]
    found = [mean_difference(there.groupby("seed")["shock/acc"].mean()) for _, there in cells]
    return cells.head(1)[[*axes, "setting", "kind"]].assign(difference=found).reset_index(drop=True)


def costs(design: Design, across: pd.DataFrame) -> pd.DataFrame:
    """A row an arm: runs; `parameters` that train (lowest and highest), medians of `seconds` of training and of peak `memory` in
    MiB, nan where not recorded; its `recovery`; and the `difference` of `across`, None without a baseline."""
    rows = []
    over = dict(zip(across.arm, across["mean"], strict=True)) if "mean" in across else {}
    for arm, runs in design.runs.groupby("arm", sort=False):
        difference = over.get(arm)
        rows.append({
            "arm": arm, "runs": len(runs), "parameters": (runs.trained_parameters.min(), runs.trained_parameters.max()),
            "seconds": runs.fit_seconds.median(), "memory": runs.peak_memory.median() / MEBIBYTE,
            "recovery": recovery(runs), "shocked": int((runs["shock/loss"] > 0).sum()) if "shock/loss" in runs else 0,
            "difference": difference if isinstance(difference, Difference) else None,
        })  # fmt: skip
    return pd.DataFrame(rows)


def calibration(design: Design) -> pd.DataFrame:
    """What calibration recovers before any training: a row a site and level of surgery.calibrate, of donors that learned
    something, with the Differences `acc` and `loss` (the shock), and `acc_to_none` and `loss_to_none`, paired by seed, each of
    one family; None for the level none."""
    if CALIBRATE not in design.swept or not {*SHOCKS} <= {*design.runs}:
        return pd.DataFrame()
    runs = design.learned(design.runs).dropna(subset=list(SHOCKS))
    cells = ["setting", "strategy", "donor", *(name for name in design.of_arm if name != CALIBRATE)]
    keys = [*cells, "site", "seed"]
    plain = runs[runs[CALIBRATE] == "none"]
    for name in SHOCKS:
        partner = plain.groupby(keys)[name].mean().rename("partner").reset_index()
        to_none = runs[name] - runs[keys].merge(partner, on=keys, how="left").set_index(runs.index).partner
        runs = runs.assign(**{f"{name}_to_none": to_none})
    sites = list(runs.site.unique())

    def order(cell: tuple[str, str]) -> tuple[int, bool]:
        return sites.index(cell[0]), cell[1] != "none"

    rows = []
    for (site, level), there in sorted(runs.groupby(["site", CALIBRATE], sort=False), key=lambda cell: order(cell[0])):
        row = {"site": site, "calibrate": level}
        for name in SHOCKS:
            row[name.removeprefix("shock/")] = _over(there, name, cells)[0]
            row[f"{name.removeprefix('shock/')}_to_none"] = (
                None if level == "none" else _over(there, f"{name}_to_none", cells)[0]
            )
        rows.append(row)
    for column in ("acc_to_none", "loss_to_none"):
        corrected = together_where_known([row[column] for row in rows])
        rows = [row | {column: difference} for row, difference in zip(rows, corrected, strict=True)]
    return pd.DataFrame(rows)
