"""`hydra/sweeper=advise`, which is `layergraft advise`: which site and strategy to take, from few short runs."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from layergraft.sweeps import advise


@dataclass
class AdviseConf:
    _target_: str = "hydra_plugins.layergraft.advise_sweeper.AdviseSweeper"
    params: dict[str, Any] | None = None
    controls: list[list[str]] = field(default_factory=list)  # an experiment's; advice has its own
    contrasts: dict[str, Any] = field(default_factory=dict)  # an experiment's, too
    epochs: int | None = None  # of the longest runs; null: half of schedule.epochs, or more where a strategy takes more
    seeds: int = 5  # of the finalists
    finalists: int = 3


ConfigStore.instance().store(group="hydra/sweeper", name="advise", node=AdviseConf, provider="layergraft")


class AdviseSweeper(advise.AdviseSweeper):
    """Where Hydra looks for it."""
