"""A search over what is swept, on the same store, with pruning: what Hydra's sweeper is then. The search is `study`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layergraft.sweeps.grid import GridSweeper

if TYPE_CHECKING:
    from layergraft.runs.plan import RunPlan


class SearchSweeper(GridSweeper):
    """Each trial is a run."""

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
        from layergraft.sweeps import pool

        pool.warm()
        from layergraft.config.compose import Composer
        from layergraft.sweeps import study, sweep

        folder = self.folder(arguments)
        asked = self.asked(arguments)
        distributions = study.space(asked)
        fixed = [str(override.input_line) for override in asked if not override.is_sweep_override()]
        composer = Composer(self.hydra_context.config_loader, self.config)

        def plan_of(overrides: list[str]) -> RunPlan:
            (plan,) = self.plan(composer, composer.without_foreign([[*fixed, *overrides]]))
            return plan

        search = study.Search(folder, num_trials=self.num_trials, **self.options)
        settings = composer([]).exec
        with self.launcher.crew(settings) as (crew, where):
            search.run(distributions, plan_of, where or sweep.places(settings, self.num_trials), crew)
        return self.show(folder, search.write(), list(distributions))

    def show(self, folder: Path, rows: list[dict[str, Any]], searched: list[str]) -> Any:
        """Say what came of it; the best trial's parameters."""
        import sys

        from layergraft.errors import counted
        from layergraft.store.manifests import TRIALS

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
