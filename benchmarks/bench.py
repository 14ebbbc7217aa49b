"""layergraft beside what people would use instead, in one table.

    python benchmarks/bench.py [TOPIC ...] [--seeds 5] [--to FOLDER]

Topics: run_time, memory, prefix, memory_format, sweeps, start, report_size, loading; where there is a GPU, matmul_rate and
packed too. Each writes benchmarks/results/TOPIC_HARDWARE_DATE.md. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import importlib
import time
import warnings
from pathlib import Path

from measure import CUDA, RESULTS, table, write

TOPICS = ("run_time", "memory", "prefix", "memory_format", "sweeps", "start", "report_size", "loading")
ON_CUDA = ("matmul_rate", "packed")


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
        module, start = importlib.import_module(topic), time.perf_counter()
        seeds = {"seeds": args.seeds} if topic == "sweeps" and args.seeds else {}
        figures = module.figures(**seeds)
        asked = " ".join([topic, *(f"--{name} {number}" for name, number in seeds.items())])
        path = write(args.to, asked, module.__doc__.strip(), figures, time.perf_counter() - start)
        print(f"{table(figures)}\n\nin {path}\n", flush=True)
        every += figures
    if not CUDA:
        print("There is no GPU here: matmul_rate, packed and the others' figures on CUDA were not measured.\n")
    if len(args.topics) != 1:
        print(table(every))


if __name__ == "__main__":
    main()
