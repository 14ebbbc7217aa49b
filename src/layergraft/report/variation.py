"""What varied from seed to seed of a report's runs, and what was fixed. Imports no torch.

An interval over seeds is about what they vary: with one split for all of them it is too narrow for another sample of the same data
(Bouthillier et al. 2021, Accounting for variance in machine learning benchmarks).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from layergraft.store.records import RunRecord

Draws = dict[str, int | None]
"""What a run was made of -> the seed that drew it; None: none did."""


@dataclass(frozen=True)
class Variation:
    """What varied from seed to seed, and what was fixed, a phrase each; empty where all runs have one seed."""

    varied: list[str]
    fixed: list[str]


def draws(record: RunRecord) -> Draws:
    """Read what a completed run was made of, and the seeds that drew it, from its record."""
    data, host, seed = record.data, record.host, int(record.axes["seed"])
    init, order = (seed if (own := record.config.get(f"{what}_seed")) is None else own for what in ("init", "order"))
    seeds, drawn = data.get("seeds", {}), data.get("drawn", [])
    own = [part for part in ("train", "val", "test") if part not in drawn]
    found: Draws = {}
    if drawn:
        found[f"the split into {_listed(drawn)} images"] = seeds["split_seed"]
    if own:
        found[f"the {_listed(own)} images, which are the set's own split"] = None
    if seeds.get("few_shot_seed") is not None:
        found["the few-shot images"] = seeds["few_shot_seed"]
    if record.config.get("data", {}).get("corrupt", {}).get("labels"):
        found["the wrong labels"] = seed
    for donor in record.donors:
        spec = donor.get("spec", {})
        pretrain = spec.get("host", {}).get("pretrain") or {}  # of a layer that is cut from a pretrained host
        by = spec.get("seed", pretrain.get("seed"))
        found["the donors" if by is not None else "the donors from a file or a formula"] = by
    if "network" in host:
        found["the host's pretraining"] = host["seed"]
        if host.get("head") == "new":
            found["the initial weights of the new classifier"] = init
    elif "weights" in host:
        found["the host's weights, which are from a file"] = None
    else:
        found["the host's initial weights"] = init
    found["the order of the training images"] = order
    return found


def _listed(parts: list[str]) -> str:
    *first, last = ({"train": "training", "val": "validation"}.get(part, part) for part in parts)
    return f"{', '.join(first)} and {last}" if first else last


def variation(runs: Iterable[tuple[int, Draws]]) -> Variation:
    """Compare the draws of runs, each with the run's seed."""
    seeds_of: dict[str, dict[int | None, set[int]]] = defaultdict(
        lambda: defaultdict(set)
    )  # of each draw, by what drew it
    for seed, found in runs:
        for what, by in found.items():
            seeds_of[what][by].add(seed)
    varied, fixed = [], []
    for what, by_draw in seeds_of.items():
        if len(set().union(*by_draw.values())) < 2:
            continue
        shared = [drew for drew, seeds in by_draw.items() if len(seeds) > 1]
        if not shared:
            varied.append(what)
        elif len(by_draw) == 1:
            fixed.append(what if shared == [None] else f"{what} (by seed {shared[0]})")
        else:
            varied.append(f"{what} (in some runs; others share one)")
    return Variation(varied, fixed)
