"""Seeds until precise: `hydra.sweeper.precision: 1.0` adds seeds, in rounds, to the arms of the contrasts whose intervals are still too wide.

The rule, `stats.seeds_to_add`, looks at widths, never at p or at the difference itself. Each contrast has seeds of its own, those that its
width asked for, so that what another one needs changes nothing about it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from layergraft.config.overrides import key_of
from layergraft.errors import UserError, counted, require
from layergraft.stats import seeds_to_add, widened
from layergraft.store.records import RunRecord, read_record

if TYPE_CHECKING:
    from layergraft.report.contrasts import Contrast
    from layergraft.runs.plan import RunPlan

POINTS = "points"  # what a half-width is asked in; contrasts in another unit keep the seeds of the sweep


@dataclass
class Round:
    """What the next round is to do."""

    combinations: list[list[str]]
    """Overrides of the runs, some of which may be there already."""
    lines: list[str]
    """Why, for people."""


class SeedRounds:
    """The rounds of a sweep with `contrasts`, which are to be within `half_width` points to either side, at `max_seeds` at most; `taken`
    are seeds that are used for something else; by the keys `tuned` arms are not told apart.

    Raises UserError for what cannot be asked.
    """

    def __init__(
        self,
        half_width: float,
        max_seeds: int,
        contrasts: Mapping[str, Mapping[str, Any]],
        taken: Collection[int] = (),
        tuned: Collection[str] = (),
    ) -> None:
        asked = "hydra.sweeper.precision"
        require(half_width > 0, f"{asked} is {half_width}; it is a half-width above 0, in points")
        name_some = "name some, as the experiments do: hydra.sweeper.contrasts"
        require(
            bool(contrasts), f"{asked} adds seeds until contrasts are precise, and this sweep names none; {name_some}"
        )
        self.half_width, self.max_seeds = half_width, max_seeds
        self.taken, self.tuned = frozenset(taken), tuple(tuned)
        self.first: list[int] = []
        self.contrasts = {name: dict(spec) for name, spec in contrasts.items()}

    def begin(self, plans: Sequence[RunPlan]) -> None:
        """Give every contrast the seeds of the sweep. Raises UserError where these are more than `max_seeds`, or fewer than 3."""
        seeds = sorted({plan.config.seed for plan in plans})
        few = f"hydra.sweeper.precision takes 3 seeds or more to begin with; the sweep has {len(seeds)}"
        require(len(seeds) > 2, f"{few}: 'seed=range(3)'")
        many = f"hydra.sweeper.max_seeds is {self.max_seeds}, and the sweep has {counted(len(seeds), 'seed')} to begin with"
        require(len(seeds) <= self.max_seeds, many)
        self.first = seeds
        for spec in self.contrasts.values():
            spec |= {"seeds": list(seeds), "by_width": self._is_in_points(spec)}

    def next(self, plans: Sequence[RunPlan]) -> Round | None:
        """What is to be added to `plans`, which are done; None where nothing is."""
        from layergraft.report.contrasts import design, keys_of
        from layergraft.report.table import tidy

        of_key = {plan.key: plan for plan in plans}
        records = [read_record(plan.folder) or RunRecord(plan.key, "missing") for plan in plans]
        if not any(record.status == "completed" for record in records):
            return None
        known = design(tidy(zip(records, (plan.folder for plan in plans), strict=True), self.tuned))
        combinations: dict[tuple[str, ...], None] = {}
        lines = []
        for name, found in self._found(known):
            spec, seeds = self.contrasts[name], self.contrasts[name]["seeds"]
            if found.difference is None:
                continue
            lost = len(seeds) - found.difference.n  # whose runs failed
            more = seeds_to_add(found.difference, self.half_width, self.max_seeds - lost)
            if more == 0:
                continue
            free = (seed for seed in itertools.count(max(seeds) + 1) if seed not in self.taken)
            new = list(itertools.islice(free, more))
            spec["seeds"] = [*seeds, *new]
            lines.append(f"{name}: ± {widened(found.difference).half_width:.2g} at {len(seeds)} seeds, {more} more")
            for key in keys_of(known, spec["of"]):
                arm = [override for override in of_key[key].overrides if key_of(override) != "seed"]
                combinations |= dict.fromkeys((*arm, f"seed={seed}") for seed in new)
        return Round([list(one) for one in combinations], lines) if combinations else None

    def as_record(self) -> dict[str, Any]:
        """What was asked, and with which seeds the sweep began, as plain data."""
        return {"half_width": self.half_width, "max_seeds": self.max_seeds, "seeds": self.first}

    @staticmethod
    def _is_in_points(spec: Mapping[str, Any]) -> bool:
        from layergraft.config.metric_registry import lookup

        metric = lookup(spec["metric"])
        return metric is not None and metric.unit_of_difference == POINTS

    def _found(self, known: Any) -> Iterator[tuple[str, Contrast]]:
        from layergraft.report.contrasts import contrast

        for name, spec in self.contrasts.items():
            if spec["by_width"]:
                runs = known.runs[known.runs.seed.isin(spec["seeds"])]
                with suppress(UserError):  # all runs of one side failed: more of them are no help
                    yield name, contrast(replace(known, runs=runs), name, spec["of"], spec["metric"])
