"""`hydra/sweeper=optuna`: a search over what is swept, on the same store, with pruning."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from layergraft.sweeps.search import SearchSweeper


@dataclass
class OptunaConf:
    _target_: str = "hydra_plugins.layergraft.optuna_sweeper.OptunaSweeper"
    params: dict[str, str] | None = None
    num_trials: int = 20
    metric: str = "val/acc"  # any of a run's record but the test split's: val/loss, val/aulc, steps_to/90, ...
    direction: str | None = None  # maximize or minimize; null: whichever is better of this metric
    sampler: str = "tpe"  # or random, cma_es
    pruner: str = "median"  # or hyperband, none
    seed: int = 0  # of the sampler


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaConf, provider="layergraft")


class OptunaSweeper(SearchSweeper):
    """Where Hydra looks for it."""
