"""From Hydra's config to the dataclasses, once, at the entry; nothing past it sees a DictConfig."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

import layergraft.data  # noqa: F401  each registers its specs
import layergraft.donors  # noqa: F401
import layergraft.hosts  # noqa: F401
from layergraft.specs import Config


def conf_dir() -> Path:
    """The folder of the config groups: inside an installed package, beside `src/` in a checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


def to_config(composed: DictConfig) -> Config:
    """The run that a composed config describes. Raises UserError for values that no run can have."""
    composed = composed.copy()
    if "hydra" in composed:
        HydraConfig.instance().set_config(composed)
        with open_dict(composed):
            del composed["hydra"]
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config
