"""Seeds until precise: what the interval covers where its width decided on n, and how many runs that saves.

    python benchmarks/precision.py [--samples 20000] [--seed 0] > benchmarks/results/precision_DATE.md

From 3, 5 or 8 seeds on, up to 50, seeds are added by the rule of `layergraft.stats.seeds_to_add` until the half-width is as asked. Widths are
in standard deviations of the differences. First the corrections that were tried: none; at least 5 seeds; one or two seeds more to confirm that
the width is met; factors on the standard error; Stein's two stages, whose interval has the spread and the quantile of the first. Then the rule
with the one that was chosen (`widening`), beside the coverage at a fixed n. Then sweeps of several contrasts with one control.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date

import numpy as np
from scipy import stats

from layergraft.stats import mean_difference, seeds_to_add, widening

STARTS = (3, 5, 8)
MAX = 50
WIDTHS = (0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.5)
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
Factor = Callable[[np.ndarray], np.ndarray]
SHAPES: dict[str, Draw] = {  # each of mean 0 and deviation 1; of the steps about 1
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "steps of a deviation": lambda rng, shape: np.round(rng.standard_normal(shape)),
    "heavy tails (t, 3 d.f.)": lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3),
    "skew 2 (exponential)": lambda rng, shape: rng.exponential(1, shape) - 1,
    "skew 3.3 (lognormal, 0.75)": lambda rng, shape: (
        (np.exp(0.75 * rng.standard_normal(shape)) - np.exp(0.28125)) / np.sqrt((np.exp(0.5625) - 1) * np.exp(0.5625))
    ),
}
N = np.arange(1, MAX + 1)
QUANTILES = np.r_[np.inf, stats.t.ppf(0.975, N[1:] - 1)]


def spreads(x_SN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (inf where the values agree) of the first 1, 2, ... of each sample."""
    mean_SN = np.cumsum(x_SN, 1) / N
    variance = (np.cumsum(x_SN**2, 1) - N * mean_SN**2) / np.maximum(N - 1, 1)
    return mean_SN, np.where(variance > 1e-9, np.sqrt(np.maximum(variance, 0)), np.inf)


def stops(spread_SN: np.ndarray, width: float, start: int, factor: Factor, confirm: int = 0) -> np.ndarray:
    """(S,): the n at which the rule of `seeds_to_add` stops, with this factor on the standard error and when the width was met
    `confirm` times more."""
    unit_N, rows = QUANTILES * factor(N) / np.sqrt(N), np.arange(len(spread_SN))
    n_S, met_S = np.full(len(rows), start), np.zeros(len(rows), int)
    while True:
        spread_S = spread_SN[rows, n_S - 1]
        met_S = np.where(unit_N[n_S - 1] * spread_S <= width, met_S + 1, 0)
        going = (n_S < MAX) & (met_S <= confirm)
        if not going.any():
            return n_S
        enough_SN = (unit_N * np.where(np.isinf(spread_S), 1e9, spread_S)[:, None] <= width) & (N > n_S[:, None])
        asked_S = np.where(enough_SN.any(1), enough_SN.argmax(1) + 1, MAX)
        more_S = np.where(np.isinf(spread_S) | (met_S > 0), 1, np.minimum(asked_S - n_S, n_S))
        n_S = np.where(going, np.minimum(n_S + more_S, MAX), n_S)


def covered(x_SN: np.ndarray, n_S: np.ndarray, factor: Factor) -> np.ndarray:
    """Whose interval holds 0 at the first n."""
    mean_SN, spread_SN = spreads(x_SN)
    rows = np.arange(len(x_SN))
    half_S = QUANTILES[n_S - 1] * factor(n_S) * spread_SN[rows, n_S - 1] / np.sqrt(n_S)
    return np.abs(mean_SN[rows, n_S - 1]) <= half_S


def stein(x_SN: np.ndarray, width: float, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Stein 1945: n by the first stage's spread; which intervals hold 0, and n."""
    mean_SN, spread_SN = spreads(x_SN)
    reach_S = QUANTILES[start - 1] * spread_SN[:, start - 1]
    n_S = np.clip(np.ceil((reach_S / width) ** 2), start, MAX).astype(int)
    return np.abs(mean_SN[np.arange(len(x_SN)), n_S - 1]) <= reach_S / np.sqrt(n_S), n_S


def by(k: float) -> Factor:
    return lambda n: 1 + k / n


CORRECTIONS: dict[str, tuple[Factor, int, int]] = {  # factor on the standard error, seeds more to confirm, fewest seeds
    "none": (by(0), 0, 0),
    "at least 5 seeds": (by(0), 0, 5),
    "1 more to confirm": (by(0), 1, 0),
    "2 more to confirm": (by(0), 2, 0),
    "× 1.1": (lambda n: 1.1 + 0 * n, 0, 0),
    "× (1 + 1/n)": (by(1), 0, 0),
    "× (1 + 1/n), at least 5": (by(1), 0, 5),
    "× (1 + 1.5/n)": (by(1.5), 0, 0),
    "× (1 + 2/n)": (by(2), 0, 0),
    "× (1 + 3/n)": (by(3), 0, 0),
}


def corrections(samples: dict[str, np.ndarray]) -> None:
    print(
        "## What corrects the interval\n\nThe lowest coverage over the asked widths, of 100 intervals at 95%, and the mean n over them.\n"
    )
    kinds = [f"{shape}, from {start}" for shape in ("normal", "skew 2 (exponential)") for start in STARTS]
    print(f"| correction | {' | '.join(kinds)} |\n|{'---|' * (len(kinds) + 1)}")
    for name, (factor, confirm, fewest) in CORRECTIONS.items():
        cells = []
        for x_SN in (samples["normal"], samples["skew 2 (exponential)"]):
            spread_SN = spreads(x_SN)[1]
            for start in STARTS:
                n = [stops(spread_SN, width, max(start, fewest), factor, confirm) for width in WIDTHS]
                cells.append(_worst([covered(x_SN, n_S, factor) for n_S in n], n))
        print(f"| {name} | {' | '.join(cells)} |")
    found = [
        [stein(x_SN, width, start) for width in WIDTHS]
        for x_SN in (samples["normal"], samples["skew 2 (exponential)"])
        for start in STARTS
    ]
    print(f"| Stein's two stages | {' | '.join(_worst(*zip(*of, strict=True)) for of in found)} |")


def _worst(covered_WS: list[np.ndarray], n_WS: list[np.ndarray]) -> str:
    return f"{100 * min(map(np.mean, covered_WS)):.1f} ({np.mean(n_WS):.1f})"


def chosen(samples: dict[str, np.ndarray]) -> None:
    print("\n## The rule: coverage where it stops, and the mean n\n")
    print(f"| differences | from | {' | '.join(f'± {width}' for width in WIDTHS)} |\n|{'---|' * (len(WIDTHS) + 2)}")
    for shape, x_SN in samples.items():
        spread_SN = spreads(x_SN)[1]
        for start in STARTS:
            n = [stops(spread_SN, width, start, widening) for width in WIDTHS]
            cells = [f"{100 * covered(x_SN, n_S, widening).mean():.1f} ({n_S.mean():.1f})" for n_S in n]
            print(f"| {shape} | {start} | {' | '.join(cells)} |")
    fixed = (3, 5, 8, 12, 20, 40)
    print("\nAt a fixed n, with a plain t interval:\n")
    print(f"| differences | {' | '.join(f'n = {n}' for n in fixed)} |\n|{'---|' * (len(fixed) + 1)}")
    for shape, x_SN in samples.items():
        rates = [100 * covered(x_SN, np.full(len(x_SN), n), by(0)).mean() for n in fixed]
        print(f"| {shape} | {' | '.join(f'{rate:.1f}' for rate in rates)} |")


def savings(rng: np.random.Generator, samples: int) -> None:
    """Contrasts, each an arm less the one control; ± 1 point, from 5 seeds on."""
    print("\n## What it saves\n")
    print(
        "Arms with normal differences to one control, whose deviation is 1.5 points in the median of the arms and lognormal among them; ± 1 point "
        "asked, from 5 seeds, at most 50. The control has as many seeds as the arm with most. Equal seeds: all arms have the fewest seeds "
        "at which a plain t interval of each contrast is within a point, which nobody knows beforehand.\n"
    )
    print(
        "| contrasts | spread of the deviations (log) | runs | runs, equal seeds | saved | contrasts that met the width |"
    )
    print("|---|---|---|---|---|---|")
    for contrasts in (3, 6, 12):
        for log_spread in (0.0, 0.3, 0.6):
            shape = (samples // 20, contrasts, MAX)
            x = rng.standard_normal(shape) * 1.5 * np.exp(log_spread * rng.standard_normal(shape[:2]))[..., None]
            spread = spreads(x.reshape(-1, MAX))[1]
            n = stops(spread, 1.0, 5, widening).reshape(shape[:2])
            met = (QUANTILES * widening(N) / np.sqrt(N) * spread)[np.arange(len(spread)), n.ravel() - 1] <= 1
            within = (QUANTILES / np.sqrt(N) * spread <= 1).reshape(shape).all(1) & (N >= 5)
            equal = np.where(within.any(1), within.argmax(1) + 1, MAX) * (contrasts + 1)
            runs = n.sum(1) + n.max(1)
            print(
                f"| {contrasts} | {log_spread} | {runs.mean():.0f} | {equal.mean():.0f} | {100 * (1 - runs.mean() / equal.mean()):.0f}% | {100 * met.mean():.0f}% |"
            )


def as_the_package(x_N: np.ndarray, width: float, start: int) -> int:
    """Where `seeds_to_add` stops."""
    n = start
    while more := seeds_to_add(mean_difference(x_N[:n]), width, MAX):
        n += more
    return n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print("# Seeds until precise\n")
    print(f"`python benchmarks/precision.py --samples {args.samples} --seed {args.seed}`, {date.today()}.\n")
    samples = {shape: draw(rng, (args.samples, MAX)) for shape, draw in SHAPES.items()}
    corrections(samples)
    chosen(samples)
    savings(rng, args.samples)


if __name__ == "__main__":
    main()
