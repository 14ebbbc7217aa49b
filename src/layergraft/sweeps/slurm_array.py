"""The jobs of a SLURM array as workers of a sweep: each takes from the store what is left to do, until nothing is.

What a job needs to know of the others is in the store: leases and records. One that is killed, preempted or out of time
is queued again and goes on; the machine that the sweep was started from may go away.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layergraft.errors import UserError
from layergraft.runs.plan import RunPlan
from layergraft.store.files import digest
from layergraft.store.records import is_done
from layergraft.sweeps import execution
from layergraft.sweeps.status import follow

INTERVAL = 10.0  # seconds between two questions to SLURM, which is shared with others
PATIENCE = 30  # questions in a row that it may leave without an answer
COMMON = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")  # what submitit calls the same everywhere


class Array:
    """A job array of `number` jobs for the sweep in `folder`; `parameters` are those of submitit's AutoExecutor, SLURM's
    own without their prefix."""

    def __init__(self, folder: Path, number: int, max_num_timeout: int, parameters: dict[str, Any]) -> None:
        self.folder, self.number, self.max_num_timeout = folder, number, max_num_timeout
        self.name = f"layergraft-{folder.name}-{digest(str(folder.resolve()))[:6]}"  # not another store's
        prefixed = {name if name in COMMON else f"slurm_{name}": value for name, value in parameters.items()}
        self.parameters = {"name": self.name, **prefixed}

    def work(self, plans: Sequence[RunPlan], newer_than: float) -> None:
        """Submit the array, unless it is in the queue already, and wait until it is through. Raises UserError where
        there is no SLURM, or none that takes such a job."""
        left = [plan for plan in plans if not is_done(plan.folder, newer_than)]
        if not left:
            return
        if shutil.which("sbatch") is None:
            raise UserError("hydra/launcher=slurm needs SLURM's sbatch, which is not on this machine")
        try:
            if queued(self.name):
                print(f"the SLURM jobs {self.name} are in the queue already: waiting for them", file=sys.stderr)
                follow(self.folder, lambda: queued(self.name), interval=INTERVAL)
                left = [plan for plan in left if not is_done(plan.folder, newer_than)]
            if left:
                print(f"SLURM jobs {self._submit(left, newer_than)}: {self.name}", file=sys.stderr)
                follow(self.folder, lambda: queued(self.name), interval=INTERVAL)
        except KeyboardInterrupt:
            print(f"the jobs go on; scancel --name {self.name} ends them", file=sys.stderr)
            raise

    def _submit(self, plans: Sequence[RunPlan], newer_than: float) -> str:
        try:
            import submitit
        except ImportError:
            raise UserError("hydra/launcher=slurm needs submitit; pip install 'layergraft[slurm]'") from None
        number = min(self.number, len(plans))
        patience = {"slurm_max_num_timeout": self.max_num_timeout}
        executor = submitit.AutoExecutor(self.folder / "slurm", cluster="slurm", **patience)
        try:
            executor.update_parameters(**self.parameters)
            with executor.batch():
                submitted = [executor.submit(Share(list(plans), index, number, newer_than)) for index in range(number)]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            lines = [line for line in str(error).splitlines() if "sbatch: error" in line] or [str(error)]
            raise UserError(f"SLURM did not take the jobs: {'; '.join(lines)}") from None
        return str(submitted[0].job_id).partition("_")[0]


class Share:
    """What one job of the array does: all runs that nobody else has done or is at, from its own place in the list on."""

    def __init__(self, plans: list[RunPlan], index: int, number: int, newer_than: float) -> None:
        start = index * len(plans) // number
        self.plans, self.newer_than = plans[start:] + plans[:start], newer_than

    def __call__(self) -> None:
        execution.run(self.plans, newer_than=self.newer_than)

    def checkpoint(self) -> Any:
        """For submitit, when the job is to be queued again: the same; where it was is in the store."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def queued(name: str) -> bool:
    """Whether one's own jobs of this name wait or run. Raises UserError where SLURM has not answered for some minutes."""
    asked = ["squeue", "--noheader", "--me", "--name", name, "--format", "%i"]
    for _ in range(PATIENCE):
        answer = subprocess.run(asked, capture_output=True, text=True)
        if answer.returncode == 0:
            return bool(answer.stdout.strip())
        time.sleep(INTERVAL)
    raise UserError(f"squeue does not answer: {answer.stderr.strip()}; the jobs go on, the same command waits for them")
