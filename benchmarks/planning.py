"""How long a sweep takes to plan, and how much memory: cells, composition, check and key, nothing is run.

    python benchmarks/planning.py [--runs 10000] [--vary seed|optim.lr] [--profile FILE]

Five strategies at three sites of four hosts, and as many seeds, or learning rates that are all different, as make the runs.
Times are of the process, on one thread; `peak` is the most memory that it had, torch and all.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import platform
import resource
import sys
import tempfile
import time
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import torch
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode

from layergraft.config.compose import Composer, conf_dir
from layergraft.sweeps import execution

SWEPT = ["strategy=freeze,low_lr,hybrid,full,gradual", "site=early,middle,late", "host=resnet18,resnet20,resnet34,resnet50"]  # fmt: skip
ARMS = 5 * 3 * 4


class Timed(Composer):
    """A composer that knows how long it has taken."""

    seconds = 0.0

    def __call__(self, overrides):
        start = time.process_time()
        try:
            return super().__call__(overrides)
        finally:
            self.seconds += time.process_time() - start


def planned(arguments: list[str]) -> tuple[int, int, dict[str, float]]:
    """Runs, different ones, and the seconds of each part, of the sweep that `arguments` ask for."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        config = hydra.compose_config("config", arguments, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        sweeper = Plugins.instance().instantiate_sweeper(
            hydra_context=context, task_function=lambda _: None, config=config
        )
        start = time.process_time()
        combinations = sweeper.combinations(list(config.hydra.overrides.task))
        made = time.process_time()
        composer = Timed(hydra.config_loader, config)
        combinations = composer.without_foreign(combinations)
        cleared = time.process_time()
        jobs = execution.planned(composer.each(combinations))
        end = time.process_time()
    checked = end - cleared - composer.seconds
    parts = {"cells": made - start, "without_foreign": cleared - made, "composition": composer.seconds, "check and key": checked}  # fmt: skip
    return len(jobs), len(execution.distinct(jobs)), parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--vary", choices=["seed", "optim.lr"], default="seed")
    parser.add_argument("--profile", type=Path, help="where to write what cProfile sees")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    number = -(-args.runs // ARMS)
    values = f"range({number})" if args.vary == "seed" else ",".join(f"{1e-4 * (1 + i):.4g}" for i in range(number))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as outputs:
        profile = cProfile.Profile() if args.profile else nullcontext()
        with profile:
            runs, different, parts = planned(
                [*SWEPT, f"{args.vary}={values}", "host.width=8", f"exec.outputs={outputs}"]
            )
    if args.profile:
        profile.dump_stats(args.profile)
    kilo = 2**20 if sys.platform == "darwin" else 2**10
    result = {
        "date": date.today().isoformat(), "machine": platform.machine(), "torch": torch.__version__, "varied": args.vary,
        "runs": runs, "different": different,
        "seconds": {name: round(seconds, 2) for name, seconds in {**parts, "all": sum(parts.values())}.items()},
        "ms a run": {name: round(1e3 * seconds / runs, 2) for name, seconds in {**parts, "all": sum(parts.values())}.items()},
        "MB": {"imported": before // kilo, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // kilo},
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
