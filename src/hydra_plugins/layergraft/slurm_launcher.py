"""`hydra/launcher=slurm`: the runs of a sweep by the jobs of a SLURM array, each of which takes what is left to do."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from hydra_plugins.layergraft.launcher import LayergraftLauncher


@dataclass
class SlurmConf:
    _target_: str = "hydra_plugins.layergraft.slurm_launcher.SlurmLauncher"
    _convert_: str = "all"
    jobs: int = 4  # of the array; each does one run after another, on all cores or GPUs that it has, until none is left
    timeout_min: int = 240
    max_num_timeout: int = 100  # times that a job is queued again once its time is up
    cpus_per_task: int = 4
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    signal_delay_s: int = 90  # before its time is up, a job is told to stop and to queue again
    setup: list[str] = field(default_factory=list)  # shell commands before each job, such as module load cuda
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # of sbatch


ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmConf, provider="layergraft")


class SlurmLauncher(LayergraftLauncher):
    gives_workers = False  # an array's jobs find what is to do by themselves

    def __init__(self, jobs: int, max_num_timeout: int, **parameters: Any) -> None:
        self.num_jobs, self.max_num_timeout = jobs, max_num_timeout
        self.parameters = {name: value for name, value in parameters.items() if value is not None}

    def resolved(self, config: Any) -> Any:
        """On a login node without a GPU, precision=auto is what it will be on the nodes that have one."""
        from layergraft.runs.assemble import for_gpus

        return for_gpus(config) if self.parameters.get("gpus_per_node") else config

    def work(self, jobs: Sequence[Any]) -> None:
        from pathlib import Path

        from layergraft.runs.slurm import Array

        folder = Path(self.config.hydra.sweep.dir)
        Array(folder, self.num_jobs, self.max_num_timeout, self.parameters).work(jobs, self.newer_than)
