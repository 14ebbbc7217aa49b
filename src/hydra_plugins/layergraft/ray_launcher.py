"""`hydra/launcher=ray`: the runs of a sweep on a Ray cluster, with the same queue as on one machine."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from layergraft.sweeps import launchers


@dataclass
class RayConf:
    _target_: str = "hydra_plugins.layergraft.ray_launcher.RayLauncher"
    _convert_: str = "all"
    address: str | None = None  # of a cluster, or auto; null: RAY_ADDRESS, or a Ray that is started on this machine
    cpus_per_run: float = 1
    gpus_per_run: float | None = None  # a share of a GPU; null: 1 / exec.jobs_per_gpu where the cluster has GPUs
    init: dict[str, Any] = field(default_factory=dict)  # more for ray.init


ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayConf, provider="layergraft")


class RayLauncher(launchers.RayLauncher):
    """Where Hydra looks for it."""
