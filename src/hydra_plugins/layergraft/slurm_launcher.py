"""`hydra/launcher=slurm`: the runs of a sweep by the jobs of a SLURM array, each of which takes what is left to do."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from layergraft.sweeps import launchers


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


class SlurmLauncher(launchers.SlurmLauncher):
    """Where Hydra looks for it."""
