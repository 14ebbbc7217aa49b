"""Hydra's basic sweeper with controls, a check of the whole sweep first, a report at the end.

A sweep is the product of all that is swept over, as with Hydra's own. `controls` adds arms to it: each is a list of
overrides laid over every combination of the product, so that a control follows when other sites, hosts or seeds are swept.
Runs that come out the same (a host without a donor is the same at every site) are done once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from layergraft.config.overrides import from_hydra, key_of, to_hydra, void, within
from layergraft.errors import UserError, counted, require, unknown
from layergraft.store.files import digest, label, write_atomic
from layergraft.store.records import DONE, RECORD, read_record, run_folder, status_of
from layergraft.store.sweep_folder import RERUN, SWEEP, read_sweep
from layergraft.sweeps import worker_pool
from layergraft.sweeps.launchers import LocalLauncher
from layergraft.sweeps.manifest import finished, signature, write_plan

if TYPE_CHECKING:
    from layergraft.config.compose import Composer
    from layergraft.runs.plan import RunPlan
    from layergraft.sweeps.seed_rounds import SeedRounds
    from layergraft.sweeps.tuning import Arm, Tuning

TENSORBOARD_DRAWS = 40  # runs; of more it selects none by itself


def _contrast(name: str, given: Any) -> dict[str, Any]:
    """A contrast as plain data. Raises UserError for what has not its form."""
    plain = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    known: dict[str, Any] = {"of": [], "metric": "test/acc", "margin": None}
    if not isinstance(plain, dict) or not isinstance(plain.get("of"), list):
        form = "{of: ['+AXIS=VALUE', '-AXIS=VALUE'], metric: test/acc, margin: null}"
        raise UserError(f"contrast {name}: it is {form}; given: {plain}")
    for key in plain.keys() - known:
        raise unknown(f"key of contrast {name}:", key, known)
    return {**known, **{str(key): value for key, value in plain.items()}}


class GridSweeper(BasicSweeper):
    """The product of all that is swept over, and each control over it."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Any  # a LocalLauncher, or one of Hydra's others
    kind = "sweep"

    def __init__(
        self,
        params: Any = None,
        controls: Sequence[list[str]] = (),
        contrasts: Any = None,
        tune: Any = None,
        tuning_seeds: Sequence[int] = (),
        tuned: str | None = None,
        precision: float | None = None,
        max_seeds: int = 20,
    ) -> None:
        super().__init__(max_batch_size=None, params=params)
        self.controls = controls or ()
        self.contrasts = {name: _contrast(name, given) for name, given in (contrasts or {}).items()}
        self.tune, self.tuning_seeds, self.tuned = tune, tuning_seeds, tuned
        self.precision, self.max_seeds = precision, max_seeds

    def asked(self, arguments: list[str]) -> list[Override]:
        """What is swept over and what is fixed. Raises UserError for what is nothing to sweep over."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*map(to_hydra, self._parse_config()), *arguments])
        for override in (o for o in overrides if o.is_sweep_override()):
            if within(override.key_or_group, "exec"):
                raise UserError(f"{override.input_line}: exec cannot be swept over; nothing there changes a result")
            if not isinstance(override.value(), IntervalSweep) and not any(True for _ in override.sweep_iterator()):
                raise UserError(f"{override.input_line} has no values, so there is nothing to run")
        return overrides

    def combinations(self, arguments: list[str]) -> list[list[str]]:
        """The overrides of every run asked for: the product, then each control over it, without repeats."""
        overrides = self.asked(arguments)
        for override in overrides:
            if override.is_sweep_override() and isinstance(override.value(), IntervalSweep):
                searched = "an interval is to be searched: hydra/sweeper=optuna does"
                raise UserError(f"{override.input_line}: {searched}; give a list or a range")
        (product,) = self.split_arguments(overrides, None)
        combinations = [list(combination) for combination in product]
        for control in self.controls:
            pinned = [key_of(override) for override in control]
            for combination in product:
                kept = [o for o in combination if not any(void(key_of(o), key) for key in pinned)]
                combinations.append([*kept, *map(to_hydra, control)])
        return [list(combination) for combination in dict.fromkeys(map(tuple, combinations))]

    @cached_property
    def composer(self) -> Composer:
        from layergraft.config.compose import Composer

        return Composer(self.hydra_context.config_loader, self.config)

    def plan(self, combinations: Sequence[Sequence[str]]) -> list[RunPlan]:
        """Plan the different runs among `combinations`."""
        from layergraft.sweeps import execution

        return execution.distinct(self.plan_each(combinations))

    def plan_each(self, combinations: Sequence[Sequence[str]]) -> list[RunPlan]:
        """Plan the run of each of `combinations`, as the machines that the launcher has will do them."""
        from layergraft.sweeps import execution

        own = isinstance(self.launcher, LocalLauncher)
        each = (
            (o, self.launcher.resolved(config) if own else config) for o, config in self.composer.each(combinations)
        )
        return execution.planned(each)

    def folder(self, arguments: list[str]) -> Path:
        """Where the sweep is: under its name, or one that is the same for the same overrides: that of the experiment, and of
        the size that was asked for, where there are no others."""
        settings = self.config.exec
        asked = {key_of(a): a.partition("=")[2] for a in arguments if not a.startswith("exec.")}
        chosen = [asked[group] for group in ("experiment", "size") if group in asked]
        own = sorted(a for a in arguments if key_of(a) in asked.keys() - {"experiment", "size"})
        name = "-".join([*map(label, chosen or [self.kind]), *([digest(own)] if own or not chosen else [])])
        return Path(settings.outputs) / "sweeps" / (settings.sweep or name)

    def sweep(self, arguments: list[str]) -> Any:
        settings, folder = self.config.exec, self.folder(arguments)
        if settings.rerun or not (folder / SWEEP).exists():  # there is something to do
            worker_pool.warm()
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
        loader, asked = self.hydra_context.config_loader, self.combinations(arguments)
        searched = (str(item.path).removeprefix("file://") for item in loader.get_search_path().get_path())
        paths = [Path(path) for path in searched if "://" not in path]  # no folders are Hydra's own and the schema
        signed = signature(asked, self.config, paths)
        keys = None if settings.rerun else finished(folder, Path(settings.outputs), signed)
        if keys is not None:
            say(f"{len(keys)} of {counted(len(keys), 'run')} in the store already")
            finish(folder, keys, 0.0)
            return [[]]
        worker_pool.warm()
        combinations = self.composer.without_foreign(asked)
        say(f"checking {counted(len(combinations), 'run')} before the first starts")
        plans = self.plan(combinations)
        if self.contrasts:  # the report of these runs is to have them all
            from layergraft.report.contrasts import require_contrasts
            from layergraft.runs.train import planned_record

            metrics = dict.fromkeys(name for plan in plans for name in plan.metrics)
            require_contrasts((planned_record(plan, "planned") for plan in plans), self.contrasts, metrics)
        tuning, arms = self._tuning(combinations, [plan.config.seed for plan in plans], paths)
        rounds = self._rounds(plans, tuning)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "multirun.yaml", OmegaConf.to_yaml(self.config))
        before = set(read_sweep(folder)["runs"]) if (folder / SWEEP).exists() else set()
        command = shlex.join(["layergraft", "train", *map(from_hydra, sys.argv[1:])])
        note = partial(write_plan, folder, command=command, signed=signed, rerun=settings.rerun)
        tuned = None
        if tuning is not None:
            for rung in tuning.rungs(arms.values()):
                self._launch(rung, note(rung, contrasts=self.contrasts, tuned={}, open_ended=True))
            tuning.conclude(arms)
            tuning.write(folder, command)
            for line in tuning.say():
                say(line)
            plans = self.plan(self.composer.without_foreign([tuning.tuned(one) for one in combinations]))
            tuned = {plan.key: tuning.arm_of(plan) for plan in plans}
        elif rounds is None and (others := before - {plan.key for plan in plans}):
            was = f"{folder} was a sweep of {counted(len(others), 'other run')}"
            say(f"{was}; they stay in the store, this one's report replaces theirs")
        since = note(plans, contrasts=self.contrasts, tuned=tuned, open_ended=rounds is not None)
        returns = list(self._launch(plans, since))
        if rounds is not None:
            while more := rounds.next(plans):
                for line in more.lines:
                    say(line)
                there = {plan.key for plan in plans}
                new = [plan for plan in self.plan(more.combinations) if plan.key not in there]
                plans = [*plans, *new]
                tuned = {plan.key: tuning.arm_of(plan) for plan in plans} if tuning else None
                if new:  # another contrast may have asked for the same runs before
                    returns += self._launch(new, note(plans, contrasts=self.contrasts, tuned=tuned, open_ended=True))
            since = note(plans, contrasts=rounds.contrasts, tuned=tuned, precision=rounds.as_record())
        finish(folder, [plan.key for plan in plans], since)
        return returns

    def _rounds(self, plans: Sequence[RunPlan], tuning: Tuning | None) -> SeedRounds | None:
        """What adds seeds to `plans` until contrasts are precise; None where that was not asked for."""
        if self.precision is None:
            return None
        from layergraft.sweeps.seed_rounds import SeedRounds

        own = (tuning.seeds, tuning.grid) if tuning else ()
        rounds = SeedRounds(self.precision, self.max_seeds, self.contrasts, *own)
        rounds.begin(plans)
        return rounds

    def _tuning(
        self, combinations: Sequence[Sequence[str]], seeds: Sequence[int], config_folders: Sequence[Path]
    ) -> tuple[Tuning | None, dict[tuple[str, ...], Arm]]:
        """What tunes the arms of `combinations`, and these; None and nothing where nothing is to be tuned."""
        from layergraft.sweeps.tuning import Tuning, grid_of

        grid = grid_of(self.tune)
        if not grid:
            return None, {}
        tuning = Tuning(grid, self.tuning_seeds, self._known(config_folders))
        tuning.require_apart(combinations, seeds)
        arms = tuning.arms(combinations, lambda each: self.plan_each(self.composer.without_foreign(each)))
        for line in tuning.announce(arms, self.tuned):
            say(line)
        return tuning, arms

    def _known(self, config_folders: Sequence[Path]) -> Path | None:
        """The file that `hydra.sweeper.tuned` names, from here or from a folder of configs. Raises UserError where there is none."""
        if self.tuned is None:
            return None
        there = [path for folder in (Path(), *config_folders) if (path := folder / self.tuned).is_file()]
        require(bool(there), f"hydra.sweeper.tuned: file not found: {self.tuned}")
        return there[0]

    def _launch(self, plans: list[RunPlan], since: float) -> Any:
        """Have the launcher do these runs, unless the store has them from `since` or later."""
        if isinstance(self.launcher, LocalLauncher):  # it need not plan them again; others compose by themselves
            self.launcher.planned, self.launcher.newer_than = plans, since
        return self.launcher.launch([list(plan.overrides) for plan in plans], initial_job_idx=0)


def say(line: str) -> None:
    """Print a line for people, beside what a program may read."""
    print(line, file=sys.stderr)


def finish(folder: Path, keys: list[str], since: float) -> None:
    """Have the sweep's report there, say where everything is and what failed and why; exit with 1 where runs failed.
    Records of before `since` do not count. A rerun of which all has ended is concluded."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    outputs = folder.parents[1]
    statuses = {key: status_of(run_folder(outputs, key), since) or "missing" for key in keys}
    completed = [key for key in keys if statuses[key] == "completed"]
    console.print(f"{len(completed)} of {counted(len(keys), 'run')} completed")
    troubled = {key: read_record(run_folder(outputs, key)) for key in keys if statuses[key] != "completed"}
    width = max(map(len, troubled), default=0)
    for key, record in troubled.items():
        reason = record.error.partition("\n")[0] if record else ""
        console.print(f"  {statuses[key]:<11}  {key:<{width}}  {reason}", markup=False)
    if troubled:
        again = "; the same command tries what failed again" if set(statuses.values()) - set(DONE) else ""
        console.print(f"tracebacks are in {outputs / 'runs'}/KEY/{RECORD}{again}")
    if completed:
        page = folder / "report.html"
        newest = max((run_folder(outputs, key) / RECORD).stat().st_mtime for key in completed)
        if not page.exists() or page.stat().st_mtime <= max(newest, (folder / SWEEP).stat().st_mtime):
            from layergraft import report

            page = report.write([folder])
        console.print(f"report:      {page}", markup=False)
        console.print(f"TensorBoard: tensorboard --logdir {outputs / 'runs'}", markup=False)
        if len(keys) > TENSORBOARD_DRAWS:
            drawn = "it draws those alone that its filter leaves, such as seed0"
            console.print(f"             (of over {TENSORBOARD_DRAWS} runs {drawn})")
    if set(statuses.values()) <= {*DONE, "failed"}:
        (folder / RERUN).unlink(missing_ok=True)
    if troubled:
        sys.exit(1)
