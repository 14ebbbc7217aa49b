"""`hydra/launcher=layergraft`: the runs of a batch on all cores or GPUs of this machine, in warm workers.

Hydra imports this module at every start, and wants it under `hydra_plugins`: torch is imported when it is used.
It executes it before it is in sys.modules, which dataclasses with postponed annotations do not survive.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LauncherConf:
    _target_: str = "hydra_plugins.layergraft.launcher.LayergraftLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="layergraft", node=LauncherConf, provider="layergraft")


class LayergraftLauncher(Launcher):
    hydra_context: HydraContext
    config: DictConfig
    gives_workers = True  # by `crew`, to whom a search gives its trials

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.planned: list[Any] | None = None  # the jobs of the next launch, where the sweeper has planned them already
        self.newer_than = 0.0

    def resolved(self, config: Any) -> Any:
        """A run's config with what the machines that will do it decide, where those are not like this one."""
        return config

    @contextmanager
    def crew(self, settings: Any) -> Iterator[tuple[Any, list[str]]]:
        """Where workers come from, and the place of each; for None and none this machine's, as many as it has room for.
        `settings` are the ExecSpec."""
        yield None, []

    def work(self, jobs: Sequence[Any]) -> None:
        """Do the jobs that the store does not have."""
        from layergraft.runs import sweep

        with self.crew(jobs[0].config.exec) as (crew, where):
            sweep.run(jobs, newer_than=self.newer_than, crew=crew, where=where)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from pathlib import Path

        from layergraft.runs import sweep
        from layergraft.runs.compose import Composer
        from layergraft.store import read_record, run_folder, status_of

        jobs, self.planned = self.planned, None
        if jobs is None:
            jobs = sweep.plan(Composer(self.hydra_context.config_loader, self.config).each(job_overrides))
        self.work(sweep.distinct(jobs))
        returns = []
        for job in jobs:
            folder = run_folder(Path(job.config.exec.outputs), job.key)
            record = read_record(folder) if status_of(folder, self.newer_than) else None
            record = record or {"status": "missing", "error": "it left no record"}
            done = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
            if record["status"] == "completed":
                done.return_value = record["metrics"]["val/acc"]
            else:
                done.status, done.return_value = JobStatus.FAILED, RuntimeError(f"{job.key}: {record.get('error')}")
            returns.append(done)
        return returns
