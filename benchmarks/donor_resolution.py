"""Donors trained on images as they are, and on images pooled to the size of the site's maps: which grafts better, and at what cost.

    python benchmarks/donor_resolution.py [--seeds 10] [--outputs FOLDER] [--out FILE.md]

On the digits (size digits: ResNet-20 of width 8, pretrained on half A; the target is 100 blurred images of half B), in the middle and
late. A seed has one host and, at each site, a donor of each kind. A donor's seconds are its own training's, on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from measure import composed, hardware

from layergraft.runs.build import get_donors, get_host
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute
from layergraft.stats import mean_difference

SITES, RESOLUTIONS, STRATEGIES = ("middle", "late"), ("image", "site"), ("freeze", "full")
ROWS = {
    "lost at step 0, points of validation accuracy": "shock",
    "test accuracy, freeze": "freeze",
    "test accuracy, full": "full",
    "the donor's own test accuracy": "donor",
    "seconds to train the donor": "seconds",
}


def measured(seeds: int, outputs: Path) -> dict[tuple[str, str, str], list[float]]:
    """(site, resolution, figure) -> a value for each seed."""
    found = defaultdict(list)
    for seed in range(seeds):
        for site in SITES:
            for resolution in RESOLUTIONS:
                for strategy in STRATEGIES:
                    plan = plan_run(composed(
                        "+size=digits", "donor.data=digits_a", f"site={site}", f"strategy={strategy}", f"seed={seed}",
                        f"donor.resolution={resolution}", "exec=cpu", "exec.threads=1", "exec.similarity.resamples=0", f"exec.outputs={outputs}",
                    ))  # fmt: skip
                    if strategy == STRATEGIES[0]:
                        get_host(plan)
                        start = time.perf_counter()
                        (donor,) = get_donors(plan)
                        found[site, resolution, "seconds"].append(time.perf_counter() - start)
                        found[site, resolution, "donor"].append(donor.provenance["metrics"]["test/acc"])
                    metrics = execute(plan).metrics
                    found[site, resolution, strategy].append(metrics["test/acc"])
                found[site, resolution, "shock"].append(metrics["shock/acc"])  # before the first step: of any strategy
    return found


def lines(found: dict[tuple[str, str, str], list[float]], seeds: int) -> list[str]:
    """The table, in Markdown."""
    made = [f"# Donors at the image's and at the site's resolution, n = {seeds}", "", f"{hardware()}. Means; differences paired by seed, 95% intervals, uncorrected.", "",
            "| | " + " | ".join(f"{site}: {part}" for site in SITES for part in ("image", "site", "site less image")) + " |",
            "|---" * (1 + 3 * len(SITES)) + "|"]  # fmt: skip
    for words, figure in ROWS.items():
        cells = []
        for site in SITES:
            image, own = (found[site, resolution, figure] for resolution in RESOLUTIONS)
            difference = mean_difference([b - a for a, b in zip(image, own, strict=True)])
            cells += [f"{sum(image) / seeds:.1f}", f"{sum(own) / seeds:.1f}", str(difference)]
        made.append(f"| {words} | {' | '.join(cells)} |")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--outputs", type=Path, help="the store; a new one, where donors are timed, if left out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        text = "\n".join(lines(measured(args.seeds, args.outputs or Path(fresh)), args.seeds)) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
