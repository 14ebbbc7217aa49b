"""`hydra/sweeper=layergraft`: Hydra's basic sweeper with controls, a check of the whole sweep first, a report at the end.

A sweep is the product of all that is swept over, as with Hydra's own. `controls` adds arms to it: each is a list of
overrides laid over every cell of the product, so that a control follows when other sites, hosts or seeds are swept.
Runs that come out the same (a host without a donor is the same at every site) are done once.
"""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from layergraft.errors import UserError


@dataclass
class SweeperConf:
    _target_: str = "hydra_plugins.layergraft.sweeper.LayergraftSweeper"
    params: dict[str, str] | None = None
    controls: list[list[str]] = field(default_factory=list)


ConfigStore.instance().store(group="hydra/sweeper", name="layergraft", node=SweeperConf, provider="layergraft")


def key_of(override: str) -> str:
    """`data@donor.data=digits` -> `donor.data`: where in the config an override acts."""
    return override.split("=", 1)[0].lstrip("+~").rpartition("@")[2]


def within(key: str, parent: str) -> bool:
    """Whether `key` is `parent` or a part of it: what was said of a donor is void where a control has another."""
    return key == parent or key.startswith(parent + ".")


class LayergraftSweeper(BasicSweeper):
    def __init__(self, params: dict[str, str] | None = None, controls: list[list[str]] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)
        self.controls = controls or []

    def cells(self, arguments: list[str]) -> list[list[str]]:
        """The overrides of every run asked for: the product, then each control over it, without repeats."""
        from layergraft.runs.compose import spelled

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*map(spelled, self._parse_config()), *arguments])
        for override in overrides:
            if override.is_sweep_override() and within(override.key_or_group, "exec"):
                raise UserError(f"{override.input_line}: exec cannot be swept over; nothing there changes a result")
        (product,) = self.split_arguments(overrides, None)
        cells = [list(cell) for cell in product]
        for control in (list(map(spelled, control)) for control in self.controls):
            pinned = [key_of(override) for override in control]
            for cell in product:
                kept = [override for override in cell if not any(within(key_of(override), key) for key in pinned)]
                cells.append(kept + list(control))
        return [list(cell) for cell in dict.fromkeys(map(tuple, cells))]

    def sweep(self, arguments: list[str]) -> Any:
        from layergraft.files import digest
        from layergraft.runs import pool

        pool.warm()
        from layergraft.runs import sweep
        from layergraft.runs.compose import Composer

        name = self.config.exec.sweep or f"sweep-{digest(sorted(a for a in arguments if not a.startswith('exec.')))}"
        folder = Path(self.config.exec.outputs) / "sweeps" / name
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
        composer = Composer(self.hydra_context.config_loader, self.config)
        cells = composer.without_foreign(self.cells(arguments))
        print(f"checking {len(cells)} runs before the first starts", file=sys.stderr)
        jobs = sweep.distinct(sweep.plan(composer, cells))
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        sweep.write_plan(folder, jobs, shlex.join(["layergraft", "train", *sys.argv[1:]]))
        self.launcher.planned = jobs  # our launcher need not plan them again; another composes them by itself
        returns = self.launcher.launch([list(job.overrides) for job in jobs], initial_job_idx=0)
        finish(folder)
        return returns


def finish(folder: Path) -> None:
    """Write the sweep's report, say where everything is, and exit with 1 where runs failed."""
    from rich.console import Console

    from layergraft import report

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    records = report.read_sweep(folder)
    failed = [record for record in records if record["status"] != "completed"]
    console.print(f"{len(records) - len(failed)} of {len(records)} runs completed")
    for record in failed:
        reason = record.get("error", "").partition("\n")[0]
        console.print(f"  {record['status']}: {record['key']}: {reason}", markup=False)
    if len(failed) < len(records):
        console.print(f"report:      {report.write(folder)}", markup=False)
        console.print(f"TensorBoard: tensorboard --logdir {folder.parents[1] / 'runs'}", markup=False)
    if failed:
        sys.exit(1)
