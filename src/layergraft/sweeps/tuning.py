"""Each arm of a sweep tuned within itself before arms are compared: `hydra.sweeper.tune: {optim.lr: [3e-4, 1e-3, 3e-3]}`.

Arms are compared at one learning rate for all, or each at its own. The one compares the rate as much as the arms: what suits one
strategy is far off for another. Here every arm, controls included, takes the values that validate best for it, by successive
halving over seeds that the comparison does not use, so that what the choice owes to luck is no part of what is compared.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from layergraft.config.overrides import from_hydra, key_of
from layergraft.config.registry import canonical
from layergraft.errors import RunFailed, counted, listing, require
from layergraft.stats.successive_halving import num_runs, ranked, rungs
from layergraft.store.files import digest, write_json
from layergraft.store.records import RunRecord, read_json, read_record
from layergraft.store.sweep_folder import TUNED

if TYPE_CHECKING:
    from layergraft.runs.plan import RunPlan

METRICS = ("val/acc", "val/loss")
OF_ARMS = ("site", "strategy", "host", "donor", "data", "surgery")
Values = dict[str, Any]  # tuned key -> value
PlanEach = Callable[[Sequence[Sequence[str]]], "list[RunPlan]"]  # combinations of overrides -> the run of each


def grid_of(given: Any) -> dict[str, list[Any]]:
    """`hydra.sweeper.tune` as key -> values, whether keys are nested or dotted. Raises UserError for what is none."""
    plain: Any = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    require(isinstance(plain or {}, dict), f"hydra.sweeper.tune is {{optim.lr: [1e-3, 3e-3]}}; given: {plain}")

    def flat(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        return found

    grid = {key: value for key, value in flat(plain or {}, "").items() if value is not None}
    for key, values in grid.items():
        what = f"hydra.sweeper.tune.{key}"
        require(isinstance(values, list) and len(values) > 1, f"{what} is {values}; it is a list of two values or more")
        plain_values = all(isinstance(value, (bool, int, float, str)) for value in values)
        require(plain_values, f"{what} has {values}; a value is a number or a word")
        require(len(set(map(repr, values))) == len(values), f"{what} has a value twice: {values}")
        require(key != "seed" and not key.startswith("exec."), f"{what}: {key} is nothing to tune")
        require(
            key not in OF_ARMS,
            f"{what}: arms are told apart by {key}; sweep over it: {key}={','.join(map(str, values))}",
        )
    return grid


def assigned(values: Values) -> list[str]:
    """Values as overrides."""
    return [f"{key}={json.dumps(value) if isinstance(value, (bool, str)) else value}" for key, value in values.items()]


def at_edge(chosen: Values, grid: Mapping[str, Sequence[Any]]) -> list[str]:
    """The keys whose chosen number is the least or the greatest of its grid: a better one may lie beyond."""
    numbers = {key: values for key, values in grid.items() if all(map(_is_number, values))}
    return [key for key, values in numbers.items() if chosen.get(key) in (min(values), max(values))]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass
class Arm:
    """Runs that differ by seed alone, once the tuned keys are set."""

    name: str
    """What tells it from the others of its sweep."""
    config: str
    """A digest of its config less the same, and less what depends on the machine."""
    plans: dict[int, dict[int, RunPlan]]
    """Candidate -> seed -> its run. Candidates that come to the same runs are one, the first: a donor's key does nothing to a host
    without a donor."""
    left: list[int]
    """Candidates that are still in, the best first."""
    scores: dict[int, dict[int, list[float | None]]] = field(default_factory=dict)
    """Candidate -> seed -> METRICS; None where the run was not completed."""
    cost: dict[str, tuple[float, int]] = field(default_factory=dict)
    """What was trained for the tuning -> seconds, and training images that it went through, each as often as it did: a tuning run by its
    key, and for each seed the donors and the host, which its runs share."""

    def charge(self, seed: int, plan: RunPlan, record: RunRecord) -> None:
        """Note what a tuning run took. One that did not come to its end counts as all of its images."""
        seen = plan.steps_per_epoch * plan.config.schedule.epochs * plan.batches.batch_size * plan.batches.accumulate
        took = record.timings.get("fit_seconds", record.timings.get("total_seconds", 0.0))
        self.cost[plan.key] = took, record.costs.get("images", seen)
        for of in ("donor", "pretraining"):
            if f"{of}_images" in record.costs:
                self.cost[f"{of}, seed {seed}"] = record.timings[f"{of}_seconds"], record.costs[f"{of}_images"]

    @property
    def num_runs(self) -> int:
        return len(self.cost.keys() & {plan.key for by_seed in self.plans.values() for plan in by_seed.values()})


class Tuning:
    """Tunes the arms of a sweep over `grid` on `seeds`, or takes the arms that `known`, a file of a tuning before, has.

    Raises UserError for a grid, seeds or a file that cannot be.
    """

    def __init__(self, grid: dict[str, list[Any]], seeds: Sequence[int], known: Path | None) -> None:
        self.grid, self.seeds = grid, [int(seed) for seed in seeds]
        self.candidates = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        require(bool(self.seeds), "hydra.sweeper.tuning_seeds is empty; tuning takes one seed or more")
        require(len(set(self.seeds)) == len(self.seeds), f"hydra.sweeper.tuning_seeds has a seed twice: {self.seeds}")
        before: dict[str, Any] = read_json(known) if known else {"tune": grid, "seeds": self.seeds, "arms": []}
        sound = {"tune", "seeds", "arms"} <= before.keys()
        require(sound, f"hydra.sweeper.tuned: {known} is no {TUNED}, which a tuned sweep writes into its folder")
        self.is_same = (before["tune"], before["seeds"]) == (grid, self.seeds)
        self.known = {arm["config"]: arm for arm in before["arms"]} if self.is_same else {}
        # The overrides of an arm, less seed and tuned keys -> what was found for it.
        self.done: dict[tuple[str, ...], dict[str, Any]] = {}

    def bare(self, combination: Sequence[str]) -> tuple[str, ...]:
        """A combination's overrides less the seed and what is tuned."""
        return tuple(override for override in combination if key_of(override) not in ("seed", *self.grid))

    def tuned(self, combination: Sequence[str]) -> list[str]:
        """A combination of the comparison with the values that were chosen for its arm."""
        chosen = self.done[self.bare(combination)]["chosen"]
        return [*(o for o in combination if key_of(o) not in self.grid), *assigned(chosen)]

    def require_apart(self, combinations: Sequence[Sequence[str]], seeds: Iterable[int]) -> None:
        """Raise UserError where the comparison has a seed of the tuning, or sweeps over what is tuned."""
        shared = sorted(set(self.seeds) & set(seeds))
        luck = "the choice would favour an arm for its luck with it. hydra.sweeper.tuning_seeds gives others"
        require(not shared, f"seed {listing(shared)} is both the comparison's and the tuning's; {luck}")
        for key in self.grid:
            values = {override for combination in combinations for override in combination if key_of(override) == key}
            both = f"{key} is both swept over and tuned; hydra.sweeper.tune.{key}=null leaves it to the sweep"
            require(len(values) < 2, both)

    def arms(self, combinations: Sequence[Sequence[str]], plan: PlanEach) -> dict[tuple[str, ...], Arm]:
        """The arm of each of `combinations`, by its overrides less seed and tuned keys; those of the same runs are one."""
        bare = list(dict.fromkeys(map(self.bare, combinations)))
        numbers, size = range(len(self.candidates)), len(self.candidates) * len(self.seeds)
        planned = plan([
            [*overrides, *assigned(values), f"seed={seed}"]
            for overrides in bare for values in self.candidates for seed in self.seeds
        ])  # fmt: skip
        shared = set.intersection(*map(set, bare))
        arms: dict[tuple[str, ...], Arm] = {}
        found: dict[tuple[str, ...], Arm] = {}
        for number, overrides in enumerate(bare):
            own = iter(planned[number * size : (number + 1) * size])
            plans = {candidate: {seed: next(own) for seed in self.seeds} for candidate in numbers}
            different = {tuple(one.key for one in plans[c].values()): c for c in reversed(numbers)}
            of_runs = tuple(itertools.chain(*different))
            if of_runs not in arms:
                kept = sorted(different.values())
                config = _portable(plans[0][self.seeds[0]], self.grid)
                nowhere = () if plans[0][self.seeds[0]].config.donor.is_layer else ("site", "surgery")
                own_part = [o for o in overrides if o not in shared and key_of(o).split(".")[0] not in nowhere]
                name = told(own_part)
                arms[of_runs] = Arm(name, config, {c: plans[c] for c in kept}, kept)
            found[overrides] = arms[of_runs]
        return found

    def announce(self, arms: Mapping[tuple[str, ...], Arm], named: str | None) -> Iterator[str]:
        """What is about to be tuned, and what `named`, a file, has of it already."""
        of_config = {arm.config: arm for arm in arms.values() if len(arm.plans) > 1}
        new = [arm for config, arm in of_config.items() if config not in self.known]
        if named is not None:
            why = "" if self.is_same else ", which was tuned over other values or on other seeds"
            have = f"{len(of_config) - len(new)} of {counted(len(of_config), 'arm')}"
            yield f"{have} take the {listing(self.grid)} that {named} has{why}"
        if new:
            number = sum(num_runs(rungs(len(arm.plans), len(self.seeds))) for arm in new)
            seeds = f"seeds {', '.join(map(str, self.seeds))}"
            what = f"{listing(self.grid)} of {counted(len(new), 'arm')} by {METRICS[0]} on {seeds}"
            yield f"tuning {what}: {counted(number, 'run')}"

    def rungs(self, arms: Iterable[Arm]) -> Iterator[list[RunPlan]]:
        """Yield the runs of each rung, to be done before the next is asked for. Raises RunFailed for an arm of which no candidate
        was completed."""
        different = {id(arm): arm for arm in arms}.values()
        new = [arm for arm in different if arm.config not in self.known and len(arm.plans) > 1]
        ladders = {id(arm): rungs(len(arm.plans), len(self.seeds)) for arm in new}
        for step in range(max((len(ladder) for ladder in ladders.values()), default=0)):
            there = [(arm, ladders[id(arm)][step]) for arm in new if step < len(ladders[id(arm)])]
            for arm, rung in there:
                arm.left = arm.left[: rung.num_candidates]
            yield [arm.plans[c][seed] for arm, rung in there for c in arm.left for seed in self.seeds[: rung.num_seeds]]
            for arm, rung in there:
                self._judge(arm, self.seeds[: rung.num_seeds])

    def _judge(self, arm: Arm, seeds: Sequence[int]) -> None:
        """Read what the runs of `arm` came to, and put its candidates in order."""
        for candidate in arm.left:
            for seed, plan in ((seed, arm.plans[candidate][seed]) for seed in seeds):
                record = read_record(plan.folder) or RunRecord(plan.key, "missing")
                known = record.metrics if record.status == "completed" else {}
                arm.scores.setdefault(candidate, {})[seed] = [known.get(name) for name in METRICS]
                arm.charge(seed, plan, record)
                error = record.error.partition("\n")[0]
        found_CSM = np.array([[arm.scores[c][seed] for seed in seeds] for c in arm.left], float)
        if np.isnan(found_CSM[..., 0]).any(1).all():
            raise RunFailed(f"no value of {listing(self.grid)} was completed at every seed for {arm.name}: {error}")
        arm.left = [arm.left[number] for number in ranked(found_CSM[..., 0], found_CSM[..., 1])]

    def conclude(self, arms: Mapping[tuple[str, ...], Arm]) -> None:
        """Note what was found for each of `arms`, in `done`."""
        for overrides, arm in arms.items():
            if arm.config in self.known:
                self.done[overrides] = self.known[arm.config]
                continue
            values = {candidate: self.candidates[candidate] for candidate in arm.plans} if len(arm.plans) > 1 else {}
            chosen = values.get(arm.left[0], {})
            tried = [
                {"values": values[c], "scores": {str(seed): score for seed, score in scores.items()}}
                for c, scores in sorted(arm.scores.items())
            ]
            self.done[overrides] = {
                "arm": arm.name, "config": arm.config, "chosen": chosen, "at_edge": at_edge(chosen, self.grid),
                "tried": tried, "runs": arm.num_runs, "seconds": sum(seconds for seconds, _ in arm.cost.values()),
                "images": sum(images for _, images in arm.cost.values()),
            }  # fmt: skip

    def arm_of(self, plan: RunPlan) -> str:
        """The digest by which the arm of a run of the comparison is found in what `write` has written."""
        return str(self.done[self.bare(plan.overrides)]["config"])

    def write(self, folder: Path, command: str) -> None:
        """Write `folder`/tuning.json: what was tuned, on what, and how each arm came to its values."""
        made_with = {name: version(name) for name in ("torch", "layergraft")}
        arms = list({arm["config"]: arm for arm in self.done.values()}.values())
        known = {
            "command": command,
            "made_with": made_with,
            "tune": self.grid,
            "metrics": list(METRICS),
            "seeds": self.seeds,
        }
        write_json(folder / TUNED, {**known, "arms": arms})

    def say(self) -> Iterator[str]:
        """What was chosen, in lines."""
        arms = list({arm["config"]: arm for arm in self.done.values()}.values())
        for key in self.grid:
            counts = Counter(arm["chosen"][key] for arm in arms if key in arm["chosen"])
            named = ", ".join(f"{value} for {counted(number, 'arm')}" for value, number in sorted(counts.items()))
            yield f"tuned {key}: {named}"
            edge = [arm["arm"] for arm in arms if key in arm["at_edge"]]
            if edge:
                such = f"{edge[0]}{f' and {len(edge) - 1} more' if len(edge) > 1 else ''}"
                yield f"the best {key} is at the edge of its grid for {counted(len(edge), 'arm')} ({such}); a wider grid may be better"


def told(overrides: Sequence[str]) -> str:
    """An arm's overrides for people."""
    return " ".join(map(from_hydra, overrides)) or "the run as configured"


def _portable(plan: RunPlan, grid: Iterable[str]) -> str:
    """A digest of a run's config, less its seed, what is tuned, and what another machine may have otherwise."""
    body = canonical(plan.config)
    for key in ("exec", "seed", "precision", *(() if plan.config.donor.is_layer else ("site", "surgery"))):
        del body[key]
    for key in grid:
        *at, last = key.split(".")
        node = body
        for part in at:
            node = node.get(part) or {}
        node.pop(last, None)
    return digest(body)
