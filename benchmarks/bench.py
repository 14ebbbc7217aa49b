"""layergraft beside what people would use instead, in one table.

    python benchmarks/bench.py [TOPIC ...] [--seeds 5] [--to FOLDER]

Topics: run_time, memory, prefix, memory_format, sweeps, start, report_size, loading; where there is a GPU, first_run,
side_by_side, matmul_rate and packed too. Each writes benchmarks/results/TOPIC_HARDWARE_DATE.md. Nothing else should run on
the machine meanwhile. `make gpu` (benchmarks/gpu.py) runs those of a GPU in five minutes, at smaller sizes.
"""

from __future__ import annotations

import argparse
import importlib
import warnings
from pathlib import Path

from measure import CUDA, RESULTS, publish, table

TOPICS = ("run_time", "memory", "prefix", "memory_format", "sweeps", "start", "report_size", "loading")
ON_CUDA = ("first_run", "side_by_side", "matmul_rate", "packed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help="all, where none is given")
    parser.add_argument("--seeds", type=int, help="of the sweeps; 5 is the default sweep whole")
    parser.add_argument("--to", type=Path, default=RESULTS, help="the folder of the files")
    args = parser.parse_args()
    if unknown := set(args.topics) - {*TOPICS, *ON_CUDA}:
        parser.error(f"no topic {', '.join(sorted(unknown))}; there are {', '.join((*TOPICS, *ON_CUDA))}")
    warnings.filterwarnings("ignore")
    every = []
    for topic in args.topics or (TOPICS + ON_CUDA if CUDA else TOPICS):
        module = importlib.import_module(topic)
        seeds = {"seeds": args.seeds} if topic == "sweeps" and args.seeds else {}
        options = [(name, str(number)) for name, number in seeds.items()]
        command = " ".join(["python benchmarks/bench.py", topic, *(f"--{name} {number}" for name, number in options)])
        name = "-".join([topic, *(part for option in options for part in option)])
        path, figures = publish(args.to, name, command, module.__doc__, module.figures(**seeds))
        print(f"{table(figures)}\n\nin {path}\n", flush=True)
        every += figures
    if not CUDA:
        print(f"There is no GPU here: {', '.join(ON_CUDA)} and the others' figures on CUDA were not measured.\n")
    if len(args.topics) != 1:
        print(table(every))


if __name__ == "__main__":
    main()
