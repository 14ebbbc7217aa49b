"""`hydra/launcher=layergraft`: the runs of a batch on all cores or GPUs of this machine, in warm workers.

Hydra imports this module at every start, and wants it under `hydra_plugins`: torch is imported when it is used.
It executes it before it is in sys.modules, which dataclasses with postponed annotations do not survive.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.planned = None  # the jobs of the next launch, where the sweeper has planned them already

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from layergraft.runs import sweep
        from layergraft.runs.compose import Composer

        if self.planned is None:
            self.planned = sweep.plan(Composer(self.hydra_context.config_loader, self.config), job_overrides)
        jobs, self.planned = self.planned, None
        records = sweep.run(sweep.distinct(jobs))
        returns = []
        for job in jobs:
            record = records[job.key]
            done = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
            if record["status"] == "completed":
                done.return_value = record["metrics"]["val/acc"]
            else:
                done.status, done.return_value = JobStatus.FAILED, RuntimeError(f"{job.key}: {record['error']}")
            returns.append(done)
        return returns
