"""A search with Optuna on the same store: each trial is a run, kept under its key like any other, and may be pruned."""

from __future__ import annotations

import csv
import io
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import optuna
import pytorch_lightning as pl
from hydra.core.override_parser.types import IntervalSweep, Override, Transformer

from layergraft.errors import RunFailed, listing, require, unknown
from layergraft.runs.plan import RunPlan
from layergraft.runs.train import Pruned
from layergraft.store.files import write_atomic
from layergraft.store.leases import Claimed, claim
from layergraft.store.manifests import STUDY, TRIALS
from layergraft.store.records import CLAIMS, RunRecord, read_record
from layergraft.sweeps import sweep
from layergraft.sweeps.pool import Crew, Pool, Task
from layergraft.sweeps.worker import Attempt, attempt
from layergraft.training.module import PlannedModule

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
        key = override.get_key_element()
        require(
            key != "seed", "seed is nothing to search over: the best is luck. Search with one, then sweep over seeds"
        )
        value = override.value()
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
            found[key] = optuna.distributions.CategoricalDistribution(
                list(override.sweep_iterator(transformer=Transformer.encode))
            )
    require(
        bool(found), "there is nothing to search over; give lists or intervals, such as 'optim.lr=interval(1e-4,1e-1)'"
    )
    return found


class Search:
    """A study in `folder`, which goes on where it was: `num_trials` counts those of before that ended.

    `metric` is maximised or minimised; it is of the validation split. Raises UserError for what cannot be.
    """

    def __init__(
        self, folder: Path, metric: str, direction: str, sampler: str, pruner: str, num_trials: int, seed: int
    ) -> None:
        for what, name, known in (
            ("hydra.sweeper.sampler", sampler, SAMPLERS),
            ("hydra.sweeper.pruner", pruner, PRUNERS),
            ("hydra.sweeper.direction", direction, ("maximize", "minimize")),
        ):
            if name not in known:
                raise unknown(what, name, known)
        require(
            not metric.startswith("test/"),
            f"hydra.sweeper.metric is {metric}; to choose by the test split makes its figures worthless. val/acc does",
        )
        require(num_trials > 0, f"hydra.sweeper.num_trials is {num_trials}; it must be 1 or more")
        self.folder, self.metric, self.pruner, self.num_trials = folder, metric, pruner, num_trials
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.create_study(
                storage=_storage(folder),
                study_name=folder.name,
                pruner=PRUNERS[pruner](),
                direction=direction,
                load_if_exists=True,
            )
        # Not the same lots again where a search goes on.
        self.study.sampler = SAMPLERS[sampler](seed + len(self.study.get_trials(deepcopy=False)))
        require(
            self.study.direction.name.lower() == direction,
            f"{folder} has a search that is to {self.study.direction.name.lower()}; exec.sweep=NAME starts another",
        )

    def run(
        self,
        distributions: Mapping[str, optuna.distributions.BaseDistribution],
        plan_of: Callable[[list[str]], RunPlan],
        where: Sequence[str],
        crew: Crew | None,
    ) -> None:
        """Do trials until there are enough, as many at a time as there are places. `plan_of`: overrides -> the run."""
        with self._alone():
            made_of = {"metric": self.metric, **{key: repr(known) for key, known in distributions.items()}}
            before = self.study.user_attrs.get("made of", made_of)
            if not self.study.get_trials(deepcopy=False, states=(COMPLETE, PRUNED)):
                before = before | {"metric": self.metric}  # there may be none of the name that was given before
            differing = [key for key in {**before, **made_of} if before.get(key) != made_of.get(key)]
            require(
                not differing,
                f"{self.folder} has a search of another {listing(differing)}; exec.sweep=NAME starts one of its own",
            )
            self.study.set_user_attr("made of", made_of)
            for left in self.study.get_trials(states=(RUNNING,)):  # by one that was killed: the same again
                optuna.trial.Trial(self.study, left._trial_id).set_user_attr("cut off", True)
                self.study.tell(left.number, state=FAILED)
                self.study.enqueue_trial(left.params)
            tries: Counter[int] = Counter()
            number = min(len(where), self._left())
            if number <= 0:
                return
            self.beside = max(Counter(where[:number]).values())
            with Pool(where[:number], crew) as pool:
                for _ in range(number):
                    pool.add(self._task(distributions, plan_of))
                for task, given in pool.outcomes():
                    outcome = sweep.outcome_of(given, task.argument.plan.outputs)
                    trial, plan = task.about
                    if outcome.status == "claimed":
                        pool.add(replace(task, argument=replace(task.argument, wait=True)))
                        continue
                    if outcome.transient and tries[trial] < plan.config.exec.retries:
                        tries[trial] += 1
                        pool.add(replace(task, crowd=1))  # alone at its place
                        continue
                    if not outcome.recorded:
                        sweep.record_failure(plan, outcome)
                    self._tell(trial, plan, outcome.status, outcome.error)
                    if self._left() - len(self.study.get_trials(deepcopy=False, states=(RUNNING,))) > 0:
                        pool.add(self._task(distributions, plan_of))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with claim(self.folder.parents[1] / CLAIMS / f"search {self.folder.name}", wait=False):
                yield
        except Claimed:
            raise RunFailed(f"another process is at the search in {self.folder}") from None

    def _left(self) -> int:
        """Trials still to be started: what failed counts, or a search of which all fails would not end; what was
        killed with its search does not."""
        ended = self.study.get_trials(deepcopy=False, states=(COMPLETE, PRUNED, FAILED))
        return self.num_trials - sum("cut off" not in trial.user_attrs for trial in ended)

    def _task(self, distributions: Mapping[str, Any], plan_of: Callable[[list[str]], RunPlan]) -> Task:
        trial = self.study.ask(dict(distributions))
        overrides = [f"{key}={value}" for key, value in trial.params.items()]
        trial.set_user_attr("overrides", overrides)
        plan = plan_of(overrides)
        trial.set_user_attr("key", plan.key)
        callback = Reporting(self.folder, trial._trial_id, self.metric, self.pruner)
        given = sweep.for_a_worker(plan, self.beside)
        return Task(attempt, Attempt(given, callbacks=(callback,)), (trial.number, plan))

    def _tell(self, number: int, plan: RunPlan, status: str, error: str) -> None:
        state, came = PRUNED if status == "pruned" else FAILED, error
        if status == "completed":
            metrics = cast(RunRecord, read_record(plan.folder)).metrics  # it is completed, so it is there
            known = [name for name in metrics if not name.startswith("test/")]
            require(self.metric in known, str(unknown("hydra.sweeper.metric", self.metric, known)))
            value = metrics[self.metric]
            came = f"{self.metric} {'was never reached' if value is None else format(value, '.4g')}"
            state = FAILED if value is None else COMPLETE
        self.study.tell(number, value if state is COMPLETE else None, state)
        print(f"trial {number} {status}, {max(0, self._left())} left: {plan.key}: {came}", file=sys.stderr)

    def write(self) -> list[dict[str, Any]]:
        """Write trials.csv; its rows, the best first, those without a value last."""
        rows = []
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state in (COMPLETE, PRUNED):
                key = trial.user_attrs["key"]
                value = trial.value if trial.state is COMPLETE else None
                rows.append(
                    {
                        "trial": trial.number,
                        "status": trial.state.name.lower(),
                        self.metric: value,
                        **trial.params,
                        "key": key,
                    }
                )
        sign = -1 if self.study.direction.name == "MAXIMIZE" else 1
        rows.sort(key=lambda row: math.inf if row["status"] == "pruned" else sign * row[self.metric])
        text = io.StringIO()
        writer = csv.DictWriter(
            text, fieldnames=list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.folder / TRIALS, text.getvalue())
        return rows


class Reporting(pl.Callback):
    """Tells the study the metric after each epoch. Raises Pruned where it has seen enough."""

    def __init__(self, folder: Path, trial_id: int, metric: str, pruner: str) -> None:
        self.folder, self.trial_id, self.metric, self.pruner = folder, trial_id, metric, pruner

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        study = optuna.load_study(
            study_name=self.folder.name, storage=_storage(self.folder), pruner=PRUNERS[self.pruner]()
        )
        self.trial = optuna.trial.Trial(study, self.trial_id)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        point = cast(PlannedModule, pl_module).curves[-1]  # the module that is trained
        if self.metric not in point:  # known at the end alone
            return
        self.trial.report(point[self.metric], trainer.current_epoch)
        if self.trial.should_prune():
            raise Pruned(f"after epoch {trainer.current_epoch}, with {self.metric} at {point[self.metric]:.4g}")


def _storage(folder: Path) -> optuna.storages.JournalStorage:
    """A file that several processes append to, on a shared disk too."""
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / STUDY)))
