"""`hydra/sweeper=layergraft`: a product of values with controls, checked whole before it starts, a report at the end."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from layergraft.sweeps.grid import GridSweeper


@dataclass
class SweeperConf:
    _target_: str = "hydra_plugins.layergraft.sweeper.LayergraftSweeper"
    params: dict[str, Any] | None = None
    controls: list[list[str]] = field(default_factory=list)
    # What the report tests, a name each: {of: ["+strategy=freeze,site=early", "-donor=none"], metric: test/acc}
    contrasts: dict[str, Any] = field(default_factory=dict)
    # What each arm is tuned over by itself before arms are compared: {optim.lr: [1e-3, 3e-3, 1e-2]}; null: nothing.
    tune: dict[str, Any] | None = field(default_factory=dict)
    tuning_seeds: list[int] = field(default_factory=lambda: [1000, 1001, 1002])  # none of the comparison's
    # Seeds are added until every contrast is within so many points to either side; null: the sweep has the seeds that it has.
    precision: float | None = None
    max_seeds: int = 20  # of a contrast
    tuned: str | None = None  # a tuning.json of before, whose arms are not tuned again


ConfigStore.instance().store(group="hydra/sweeper", name="layergraft", node=SweeperConf, provider="layergraft")


class LayergraftSweeper(GridSweeper):
    """Where Hydra looks for it."""
