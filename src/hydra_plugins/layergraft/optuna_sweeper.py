"""`hydra/sweeper=optuna`: a search over what is swept, on the same store, with pruning."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from layergraft.sweeps.search import SearchSweeper


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


class OptunaSweeper(SearchSweeper):
    """Where Hydra looks for it."""
