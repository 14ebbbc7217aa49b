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


ConfigStore.instance().store(group="hydra/sweeper", name="layergraft", node=SweeperConf, provider="layergraft")


class LayergraftSweeper(GridSweeper):
    """Where Hydra looks for it."""
