"""`hydra/sweeper=optuna`: a search over what is swept, on the same store, with pruning."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from hydra_plugins.layergraft.sweeper import LayergraftSweeper


@dataclass
class OptunaConf:
    _target_: str = "hydra_plugins.layergraft.optuna_sweeper.OptunaSweeper"
    params: dict[str, str] | None = None
    num_trials: int = 20
    metric: str = "val/acc"  # of a run's record; val/aulc, val/loss in the curves, ...
    direction: str = "maximize"  # or minimize
    sampler: str = "tpe"  # or random, cma_es
    pruner: str = "median"  # or hyperband, none
    seed: int = 0  # of the sampler


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaConf, provider="layergraft")


class OptunaSweeper(LayergraftSweeper):
    kind = "search"

    def __init__(self, params: dict[str, str] | None, num_trials: int, **options: Any) -> None:
        super().__init__(params=params)
        self.num_trials, self.options = num_trials, options

    def sweep(self, arguments: list[str]) -> Any:
        from layergraft.errors import UserError

        try:
            import optuna  # noqa: F401
        except ImportError:
            raise UserError("hydra/sweeper=optuna needs optuna; pip install 'layergraft[search]'") from None
        if not getattr(self.launcher, "gives_workers", False):
            chosen = self.config.hydra.runtime.choices["hydra/launcher"]
            raise UserError(f"hydra/sweeper=optuna searches with hydra/launcher=layergraft or ray, not with {chosen}")
        from layergraft.runs import pool

        pool.warm()
        from layergraft.runs import search, sweep
        from layergraft.runs.compose import Composer

        folder = self.folder(arguments)
        asked = self.asked(arguments)
        distributions = search.space(asked)
        fixed = [str(override.input_line) for override in asked if not override.is_sweep_override()]
        composer = Composer(self.hydra_context.config_loader, self.config)

        def job_of(overrides: list[str]) -> sweep.Job:
            job: sweep.Job
            (job,) = self.plan(composer, composer.without_foreign([[*fixed, *overrides]]))
            return job

        study = search.Search(folder, num_trials=self.num_trials, **self.options)
        settings = composer([]).exec
        with self.launcher.crew(settings) as (crew, where):
            study.run(distributions, job_of, where or sweep.places(settings, self.num_trials), crew)
        return self.show(folder, study.write(), list(distributions))

    def show(self, folder: Path, rows: list[dict[str, Any]], searched: list[str]) -> Any:
        """Say what came of it; the best trial's parameters."""
        import sys

        from layergraft.errors import counted
        from layergraft.store import TRIALS

        metric = self.options["metric"]
        done = [row for row in rows if row["status"] == "complete"]
        print(
            f"{counted(len(done), 'trial')} completed, {len(rows) - len(done)} pruned: {folder / TRIALS}",
            file=sys.stderr,
        )
        if not done:
            sys.exit(1)
        for row in done[:5]:
            print(f"  {metric} {row[metric]:.4g}  {' '.join(f'{key}={row[key]}' for key in searched)}", file=sys.stderr)
        return {key: done[0][key] for key in searched}
