"""A search with Optuna on the same store: each trial is a run, kept under its key like any other, and may be pruned."""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import optuna
import pandas as pd
import pytorch_lightning as pl
from hydra.core.override_parser.types import IntervalSweep, Override, Transformer

from layergraft.errors import RunFailed, listing, require, unknown
from layergraft.runs.plan import RunPlan
from layergraft.runs.train import Pruned
from layergraft.store.files import write_atomic
from layergraft.store.leases import LeaseHeld, lease
from layergraft.store.records import LEASES, RunRecord, read_record
from layergraft.store.sweep_folder import STUDY, TRIALS
from layergraft.sweeps import execution
from layergraft.sweeps.worker import Attempt, Outcome, attempt
from layergraft.sweeps.worker_pool import Crew, Pool, Task
from layergraft.training.lightning_module import PlannedModule

SAMPLERS = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True),  # it knows of trials that still run
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "cma_es": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
}
PRUNERS = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(),
    "none": lambda: optuna.pruners.NopPruner(),
}
FAILED, PRUNED = optuna.trial.TrialState.FAIL, optuna.trial.TrialState.PRUNED
COMPLETE, RUNNING = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.RUNNING


def space(overrides: Sequence[Override]) -> dict[str, optuna.distributions.BaseDistribution]:
    """What is searched over: lists and ranges of choices, `interval(1e-4,1e-1)`, `tag(log,interval(1e-4,1e-1))`.

    Raises UserError for what is no matter of a search.
    """
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for override in (o for o in overrides if o.is_sweep_override()):
        key, value = override.get_key_element(), override.value()
        luck = "seed is nothing to search over: the best is luck. Search with one, then sweep over seeds"
        require(key != "seed", luck)
        strange = [tag for tag in getattr(value, "tags", ()) if tag != "log" or not isinstance(value, IntervalSweep)]
        require(
            not strange,
            f"{override.input_line}: '{listing(strange)}' means nothing here; tag(log,interval(A,B)) is a range on a log scale",
        )
        if isinstance(value, IntervalSweep):
            log = "log" in value.tags
            low, high = cast(float, value.start), cast(float, value.end)  # the grammar has both
            whole = isinstance(low, int) and isinstance(high, int)
            kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
            require(low < high, f"{override.input_line}: an interval goes from low to high")
            require(not log or low > 0, f"{override.input_line}: on a log scale an interval starts above 0")
            found[key] = kind(low, high, log=log)
        else:
            choices = list(override.sweep_iterator(transformer=Transformer.encode))
            found[key] = optuna.distributions.CategoricalDistribution(choices)
    example = "give lists or intervals, such as 'optim.lr=interval(1e-4,1e-1)'"
    require(bool(found), f"there is nothing to search over; {example}")
    return found


class Search:
    """A study in `folder`, which goes on where it was: `num_trials` counts those of before that ended.

    `metric` is of the validation split. It is maximised or minimised as `direction` says, or where that is None, as is
    better. `plan_of`: overrides -> the run. Raises UserError for what cannot be.
    """

    def __init__(
        self,
        folder: Path,
        distributions: dict[str, optuna.distributions.BaseDistribution],
        plan_of: Callable[[list[str]], RunPlan],
        *,
        metric: str,
        direction: str | None,
        sampler: str,
        pruner: str,
        num_trials: int,
        seed: int,
    ) -> None:
        for what, name, known in (
            ("hydra.sweeper.sampler", sampler, SAMPLERS),
            ("hydra.sweeper.pruner", pruner, PRUNERS),
            ("hydra.sweeper.direction", direction or "maximize", ("maximize", "minimize")),
        ):
            if name not in known:
                raise unknown(what, name, known)
        require(
            not metric.startswith("test/"),
            f"hydra.sweeper.metric is {metric}; to choose by the test split makes its figures worthless. val/acc does",
        )
        require(num_trials > 0, f"hydra.sweeper.num_trials is {num_trials}; it must be 1 or more")
        first = [
            f"{key}={known.choices[0] if 'choices' in vars(known) else known.low}"
            for key, known in distributions.items()
        ]
        metrics = {name: of for name, of in plan_of(first).metrics.items() if not name.startswith("test/")}
        if metric not in metrics:
            raise unknown("hydra.sweeper.metric", metric, metrics)
        direction = direction or {"higher": "maximize", "lower": "minimize"}.get(metrics[metric].direction)
        require(direction is not None, f"neither more nor less of {metric} is better: give hydra.sweeper.direction")
        self.folder, self.distributions, self.plan_of = folder, distributions, plan_of
        self.metric, self.num_trials = metric, num_trials
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        # A file that several processes append to, on a shared disk too.
        journal = optuna.storages.journal.JournalFileBackend(str(folder / STUDY))
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            storage, name = optuna.storages.JournalStorage(journal), folder.name
            options = {"pruner": PRUNERS[pruner](), "direction": direction, "load_if_exists": True}
            self.study = optuna.create_study(storage=storage, study_name=name, **options)
        # Not the same lots again where a search goes on.
        self.study.sampler = SAMPLERS[sampler](seed + len(self._trials()))
        found = self.study.direction.name.lower()
        require(found == direction, f"{folder} has a search that is to {found}; exec.sweep=NAME starts another")

    def run(self, where: Sequence[str], crew: Crew | None) -> None:
        """Do trials until there are enough, as many at a time as there are places.

        Raises UserError where the study is of another search, RunFailed where another process is at it.
        """
        try:
            with lease(self.folder.parents[1] / LEASES / f"search {self.folder.name}", wait=False):
                self._go_on()
                where = where[: max(0, self._left())]
                if where:
                    self._do_trials(where, crew)
        except LeaseHeld:
            raise RunFailed(f"another process is at the search in {self.folder}") from None

    def _go_on(self) -> None:
        """Require that the study is of this search, and queue again what was running when it was killed."""
        made_of = {"metric": self.metric, **{key: repr(known) for key, known in self.distributions.items()}}
        before = self.study.user_attrs.get("made of", made_of)
        if not self._trials(COMPLETE, PRUNED):
            before = before | {"metric": self.metric}  # there may be none of the name that was given before
        differing = [key for key in {**before, **made_of} if before.get(key) != made_of.get(key)]
        require(
            not differing,
            f"{self.folder} has a search of another {listing(differing)}; exec.sweep=NAME starts one of its own",
        )
        self.study.set_user_attr("made of", made_of)
        for left in self._trials(RUNNING):
            optuna.trial.Trial(self.study, left._trial_id).set_user_attr("cut off", True)
            self.study.tell(left.number, state=FAILED)
            self.study.enqueue_trial(left.params)

    def _do_trials(self, where: Sequence[str], crew: Crew | None) -> None:
        beside = max(Counter(where).values())
        with Pool(where, crew) as pool:
            for _ in where:
                pool.add(self._task(beside))
            for task, outcome in execution.settled(pool):
                number, plan = task.about
                if not outcome.recorded:
                    execution.record_failure(plan, outcome)
                self._tell(number, plan, outcome)
                if self._left() > len(self._trials(RUNNING)):
                    pool.add(self._task(beside))

    def _trials(self, *states: optuna.trial.TrialState) -> Sequence[Any]:
        trials: Sequence[Any] = self.study.get_trials(deepcopy=False, states=states or None)
        return trials

    def _left(self) -> int:
        """Count the trials still to be started: what failed counts, or a search of which all fails would not end; what
        was killed with its search does not."""
        ended = self._trials(COMPLETE, PRUNED, FAILED)
        return self.num_trials - sum("cut off" not in trial.user_attrs for trial in ended)

    def _task(self, beside: int) -> Task:
        trial = self.study.ask(self.distributions)
        overrides = [f"{key}={value}" for key, value in trial.params.items()]
        trial.set_user_attr("overrides", overrides)
        plan = self.plan_of(overrides)
        trial.set_user_attr("key", plan.key)
        given = Attempt(execution.for_a_worker(plan, beside), callbacks=(Reporting(trial, self.metric),))
        return Task(attempt, given, (trial.number, plan))

    def _tell(self, number: int, plan: RunPlan, outcome: Outcome) -> None:
        state, came, value = PRUNED if outcome.status == "pruned" else FAILED, outcome.error, None
        if outcome.status == "completed":
            metrics = cast(RunRecord, read_record(plan.folder)).metrics  # it is completed, so it is there
            value = metrics.get(self.metric)
            lacks = "was never reached" if self.metric in metrics else "is not defined for these data"
            came = f"{self.metric} {lacks if value is None else format(value, '.4g')}"
            state = FAILED if value is None else COMPLETE
        self.study.tell(number, value, state)
        print(f"trial {number} {outcome.status}, {max(0, self._left())} left: {plan.key}: {came}", file=sys.stderr)

    def write(self) -> list[dict[str, Any]]:
        """Write trials.csv. Return its rows, the best first, those without a value last."""
        rows = []
        for trial in self._trials(COMPLETE, PRUNED):
            value = trial.value if trial.state is COMPLETE else None
            row = {"trial": trial.number, "status": trial.state.name.lower(), self.metric: value}
            rows.append({**row, **trial.params, "key": trial.user_attrs["key"]})
        sign = -1 if self.study.direction.name == "MAXIMIZE" else 1
        rows.sort(key=lambda row: math.inf if row["status"] == "pruned" else sign * row[self.metric])
        write_atomic(self.folder / TRIALS, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
        return rows


class Reporting(pl.Callback):
    """Tells the study the metric after each epoch. Raises Pruned where it has seen enough."""

    def __init__(self, trial: optuna.trial.Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        point = cast(PlannedModule, pl_module).curves[-1]  # the module that is trained
        if self.metric not in point:  # known at the end alone
            return
        self.trial.report(point[self.metric], trainer.current_epoch)
        if self.trial.should_prune():
            raise Pruned(f"after epoch {trainer.current_epoch}, with {self.metric} at {point[self.metric]:.4g}")
