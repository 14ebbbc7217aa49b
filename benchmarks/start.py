"""From the command to its answer, or to the first training step

Seconds, start to end of a process, with the files in the system's cache. `first step`: until an optimizer has made its first
step, of `layergraft train` with a host that is not pretrained (whose first training is the donor's), and of one without a donor, whose host is
probed first; beside it the same moment of one cell of the peer, and what it takes to import torch and Lightning.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import CORES, Figure, at_most, by_turns, spread
from report_size import records_of, store

PEER = Path(__file__).parent / "peers" / "sweep.py"
# Ends the process at the first step. Looks for torch as it is imported, so that nothing is imported sooner than it would be.
UNTIL_A_STEP = """
import importlib.abc, os, runpy, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch.optim.sgd":
            from torch.optim.optimizer import register_optimizer_step_post_hook
            register_optimizer_step_post_hook(lambda *_: os._exit(0))
        return None
sys.meta_path.insert(0, Finder())
sys.argv = sys.argv[1:]
if sys.argv[0] == "layergraft":
    runpy.run_module("layergraft", run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
sys.exit("there was no step")
"""


def figures(repeats: int = 5) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "outputs"
        sweep = store(outputs, records_of(outputs), 160)
        number = iter(range(10**6))

        def run(*arguments: str) -> None:
            done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-3000:])

        def first_step(*arguments: str) -> None:
            run("-c", UNTIL_A_STEP, *arguments)

        def train(*arguments: str) -> None:
            first_step(
                "layergraft", "train", "host.pretrain.data=none", *arguments, f"exec.outputs={folder}/{next(number)}"
            )

        ways = {
            "`layergraft --help`": (0.7, lambda: run("-m", "layergraft", "--help")),
            "`layergraft status` of 160 runs": (0.7, lambda: run("-m", "layergraft", "status", str(sweep))),
            "first step: `layergraft train`": (6, train),
            "first step: `layergraft train donor=none`": (6, lambda: train("donor=none", "strategy=full")),
            "first step: the peer": (None, lambda: first_step(str(PEER), f"hydra.run.dir={folder}/peer{next(number)}", f"donor_dir={folder}/donors{next(number)}")),
            "import of torch and Lightning": (None, lambda: run("-c", "import pytorch_lightning")),
        }  # fmt: skip
        seconds = by_turns({name: way for name, (_, way) in ways.items()}, repeats)
    found = [
        Figure(f"{name}, s", spread(seconds[name]), "" if goal is None else f"{goal:g} or less on 2 cores",
               None if goal is None or CORES > 2 else statistics.median(seconds[name]) <= goal)
        for name, (goal, _) in ways.items()
    ]  # fmt: skip
    ours, theirs = seconds["first step: `layergraft train`"], seconds["first step: the peer"]
    return [*found, at_most("first step: `layergraft train` over the peer", ours, theirs)]
