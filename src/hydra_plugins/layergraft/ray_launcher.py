"""`hydra/launcher=ray`: the runs of a sweep on a Ray cluster, with the same queue as on one machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from hydra_plugins.layergraft.launcher import LayergraftLauncher


@dataclass
class RayConf:
    _target_: str = "hydra_plugins.layergraft.ray_launcher.RayLauncher"
    _convert_: str = "all"
    address: str | None = None  # of a cluster, or auto; null: RAY_ADDRESS, or a Ray that is started on this machine
    cpus_per_run: float = 1
    gpus_per_run: float | None = None  # a share of a GPU; null: 1 / exec.jobs_per_gpu where the cluster has GPUs
    init: dict[str, Any] = field(default_factory=dict)  # more for ray.init


ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayConf, provider="layergraft")


class RayLauncher(LayergraftLauncher):
    def __init__(self, address: str | None, cpus_per_run: float, gpus_per_run: float | None, init: dict[str, Any]):
        self.address, self.cpus, self.gpus, self.init = address, cpus_per_run, gpus_per_run, init

    def resolved(self, config: Any) -> Any:
        """On a head node without a GPU, precision=auto is what it will be on the nodes that have one."""
        from layergraft.runs.assemble import for_gpus

        return for_gpus(config) if self.gpus else config

    @contextmanager
    def crew(self, settings: Any) -> Iterator[tuple[Any, list[str]]]:
        from layergraft.errors import UserError

        try:
            import ray
        except ImportError:
            raise UserError("hydra/launcher=ray needs ray; pip install 'layergraft[ray]'") from None
        from layergraft.runs.ray_crew import RayCrew

        gpus = 0.0 if settings.device.name == "cpu" else self.gpus
        crew = RayCrew(self.address, self.cpus, gpus, settings.jobs_per_gpu, dict(self.init))
        try:
            yield crew, crew.places()[: settings.workers]
        finally:
            ray.shutdown()
