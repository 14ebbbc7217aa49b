"""A search over what is swept, on the same store, with pruning: what Hydra's sweeper is then. The search is `optuna_study`'s."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layergraft.errors import UserError, counted
from layergraft.sweeps.grid import GridSweeper, say

if TYPE_CHECKING:
    from layergraft.runs.plan import RunPlan


class SearchSweeper(GridSweeper):
    """Each trial is a run."""

    kind = "search"

    def __init__(self, params: dict[str, str] | None, **options: Any) -> None:
        super().__init__(params=params)
        self.options = options  # of `optuna_study.Search`

    def sweep(self, arguments: list[str]) -> Any:
        from layergraft.sweeps import execution, optuna_study

        try:
            import optuna  # noqa: F401
        except ImportError:
            raise UserError("hydra/sweeper=optuna needs optuna; pip install 'layergraft[search]'") from None
        if not getattr(self.launcher, "gives_workers", False):
            chosen = self.config.hydra.runtime.choices["hydra/launcher"]
            raise UserError(f"hydra/sweeper=optuna searches with hydra/launcher=layergraft or ray, not with {chosen}")
        from layergraft.sweeps import worker_pool

        worker_pool.warm()

        folder = self.folder(arguments)
        asked = self.asked(arguments)
        distributions = optuna_study.space(asked)
        fixed = [str(override.input_line) for override in asked if not override.is_sweep_override()]

        def plan_of(overrides: list[str]) -> RunPlan:
            return self.plan(self.composer.without_foreign([[*fixed, *overrides]]))[0]

        search = optuna_study.Search(folder, distributions, plan_of, **self.options)
        settings = self.composer([]).exec
        with self.launcher.crew(settings) as (crew, where):
            search.run(where or execution.devices(settings, self.options["num_trials"]), crew)
        return self.show(folder, search.write(), list(distributions))

    def show(self, folder: Path, rows: list[dict[str, Any]], searched: list[str]) -> Any:
        """Say what came of it; the best trial's parameters."""
        from layergraft.store.sweep_folder import TRIALS

        metric = self.options["metric"]
        done = [row for row in rows if row["status"] == "complete"]
        say(f"{counted(len(done), 'trial')} completed, {len(rows) - len(done)} pruned: {folder / TRIALS}")
        if not done:
            sys.exit(1)
        for row in done[:5]:
            say(f"  {metric} {row[metric]:.4g}  {' '.join(f'{key}={row[key]}' for key in searched)}")
        return {key: done[0][key] for key in searched}
