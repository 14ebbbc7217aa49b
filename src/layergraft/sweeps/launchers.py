"""What Hydra's launchers are here: the runs of a sweep on this machine, on a Ray cluster, or in the jobs of a SLURM array.

Imports no torch: Hydra imports this at every start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from layergraft.errors import UserError

if TYPE_CHECKING:
    from layergraft.config.schema import Config, ExecSpec
    from layergraft.runs.plan import RunPlan


class LocalLauncher(Launcher):
    """On all cores or GPUs of this machine, in warm workers."""

    hydra_context: HydraContext
    config: DictConfig
    gives_workers = True  # by `crew`, to whom a search gives its trials
    gpus: float | None = None  # of a run, where other machines than this one do it

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.planned: list[RunPlan] | None = None  # of the next launch, where the sweeper has planned it already
        self.newer_than = 0.0

    def resolved(self, config: Config) -> Config:
        """Return the run's config as its machines will have it: on a head or login node without a GPU, precision=auto is
        what it will be on the nodes that have one."""
        from layergraft.runs.plan import for_gpus

        return for_gpus(config) if self.gpus else config

    @contextmanager
    def crew(self, settings: ExecSpec) -> Iterator[tuple[Any, list[str]]]:
        """Where workers come from, and the place of each; for None and none this machine's, as many as it has room for."""
        yield None, []

    def work(self, plans: Sequence[RunPlan]) -> None:
        """Do the runs that the store does not have."""

        from layergraft.sweeps import execution

        with self.crew(plans[0].config.exec) as (crew, where):
            execution.run(plans, newer_than=self.newer_than, crew=crew, where=where)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from layergraft.config.compose import Composer
        from layergraft.store.records import RunRecord, read_record, status_of
        from layergraft.sweeps import execution

        plans, self.planned = self.planned, None
        if plans is None:
            plans = execution.planned(Composer(self.hydra_context.config_loader, self.config).each(job_overrides))
        self.work(execution.distinct(plans))
        returns = []
        for plan in plans:
            record = read_record(plan.folder) if status_of(plan.folder, self.newer_than) else None
            record = record or RunRecord(plan.key, "missing", error="it left no record")
            completed = record.status == "completed"
            status = JobStatus.COMPLETED if completed else JobStatus.FAILED
            value = record.metrics["val/acc"] if completed else RuntimeError(f"{plan.key}: {record.error}")
            returns.append(JobReturn(overrides=plan.overrides, status=status, _return_value=value))
        return returns


class RayLauncher(LocalLauncher):
    """On a Ray cluster, with the same queue as on one machine."""

    def __init__(
        self, address: str | None, cpus_per_run: float, gpus_per_run: float | None, init: dict[str, Any]
    ) -> None:
        self.address, self.cpus, self.gpus, self.init = address, cpus_per_run, gpus_per_run, init

    @contextmanager
    def crew(self, settings: ExecSpec) -> Iterator[tuple[Any, list[str]]]:
        try:
            import ray
        except ImportError:
            raise UserError("hydra/launcher=ray needs ray; pip install 'layergraft[ray]'") from None
        from layergraft.sweeps.ray_crew import RayCrew

        gpus = 0.0 if settings.device.name == "cpu" else self.gpus
        crew = RayCrew(self.address, self.cpus, gpus, settings.jobs_per_gpu, dict(self.init))
        try:
            yield crew, crew.devices()[: settings.workers]
        finally:
            ray.shutdown()


class SlurmLauncher(LocalLauncher):
    """By the jobs of a SLURM array, each of which takes what is left to do."""

    gives_workers = False  # an array's jobs find what is to do by themselves

    def __init__(self, jobs: int, max_num_timeout: int, **parameters: Any) -> None:
        self.num_jobs, self.max_num_timeout = jobs, max_num_timeout
        self.parameters = {name: value for name, value in parameters.items() if value is not None}
        self.gpus = self.parameters.get("gpus_per_node")

    def work(self, plans: Sequence[RunPlan]) -> None:
        from layergraft.sweeps.slurm_array import Array

        folder = Path(self.config.hydra.sweep.dir)
        Array(folder, self.num_jobs, self.max_num_timeout, self.parameters).work(plans, self.newer_than)
