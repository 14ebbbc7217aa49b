"""What intervals really cover at the few seeds that people run: why the report uses the ones it uses.

    python benchmarks/coverage.py [--samples 4000] [--seed 0] > benchmarks/results/coverage_DATE.md

Tables: the mean paired difference: Student's t, the percentile bootstrap, the bootstrap-t (999 resamples each) and t
with a noise that is pooled over 12 cells, whose spreads are equal or differ (lognormal, 0.5), for several shapes of the
differences; with pooling, the worst of the 12 cells is told. How often the difference that seeds are said to have been able to show
would be found. The gain of a picked arm: picked and read on the same seeds, or as `layergraft.stats.pick` and
`gain_of_picking` do. Shares of variance, as `shares` gives them. Correlations over sources, as `association` does: exchangeable sources,
and sources that are all combinations of two factors, of which the first clusters measure and gain, or the measure tells the gain.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import date

import numpy as np
from scipy import stats

from layergraft.stats import association, gain_of_picking, mean_difference, pick, shares

SEEDS = (3, 5, 10)
RESAMPLES = 999
CELLS = 12
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
SHAPES: dict[str, Draw] = {  # each of mean 0 and deviation 1
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails (t, 3 d.f.)": lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3),
    "skew 1 (gamma)": lambda rng, shape: (rng.gamma(4, 1, shape) - 4) / 2,
    "skew 2 (exponential)": lambda rng, shape: rng.exponential(1, shape) - 1,
}


def student(x_SN: np.ndarray) -> np.ndarray:
    """Which of S samples' intervals hold 0, by the report's own function."""
    return np.array([abs(d.mean) <= d.half_width for d in map(mean_difference, x_SN)])


def bootstraps(rng: np.random.Generator, x_SN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for the percentile bootstrap and the bootstrap-t."""
    n = x_SN.shape[1]
    drawn_SRN = x_SN[:, rng.integers(0, n, (RESAMPLES, n))]
    means_SR, mean_S = drawn_SRN.mean(-1), x_SN.mean(-1)
    low, high = np.percentile(means_SR, [2.5, 97.5], axis=1)
    error_SR = drawn_SRN.std(-1, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t_SR = np.where(error_SR > 1e-12, (means_SR - mean_S[:, None]) / error_SR, np.nan)
    ends = np.nanpercentile(t_SR, [2.5, 97.5], axis=1) * (x_SN.std(-1, ddof=1) / np.sqrt(n))
    return (low <= 0) & (0 <= high), (mean_S - ends[1] <= 0) & (0 <= mean_S - ends[0])


def pooled(x_SCN: np.ndarray) -> np.ndarray:
    """Which intervals hold 0, (samples, cells), with one noise for all cells of a sample."""
    n = x_SCN.shape[-1]
    noise_S = x_SCN.var(-1, ddof=1).mean(-1)
    half_S = stats.t.ppf(0.975, x_SCN.shape[1] * (n - 1)) * np.sqrt(noise_S / n)
    return np.abs(x_SCN.mean(-1)) <= half_S[:, None]


def paired_differences(rng: np.random.Generator, samples: int) -> None:
    print("## The mean paired difference\n")
    print(
        "| differences | n | Student's t | percentile bootstrap | bootstrap-t | pooled, equal spreads | pooled, unequal: worst cell |"
    )
    print("|---|---|---|---|---|---|---|")
    for shape, draw in SHAPES.items():
        for n in SEEDS:
            x_SN = draw(rng, (samples, n))
            spread_C = np.exp(rng.normal(0, 0.5, CELLS))
            equal, unequal = (
                pooled(draw(rng, (samples, CELLS, n))),
                pooled(draw(rng, (samples, CELLS, n)) * spread_C[:, None]),
            )
            found = [student(x_SN), *bootstraps(rng, x_SN[: samples // 2]), equal]
            print(
                f"| {shape} | {n} | "
                + " | ".join(f"{100 * np.mean(x):.1f}" for x in found)
                + f" | {100 * unequal.mean(0).min():.1f} |"
            )


def detectable(rng: np.random.Generator, samples: int) -> None:
    print("\n## How often the difference that seeds could have shown is found, where they showed none\n")
    print(
        "| differences tested together | n | in the mean | 1 sample in 10 is below | 1 in 10 above |\n|---|---|---|---|---|"
    )
    for family in (1, 12):
        for n in SEEDS:
            alpha = 0.05 / family
            quantile = stats.t.ppf(1 - alpha / 2, n - 1)
            found = [replace(mean_difference(x), family=family) for x in rng.standard_normal((samples, n))]
            shifts = np.array([d.detectable for d in found if d.p >= alpha]) * np.sqrt(n)
            power = stats.nct.sf(quantile, n - 1, np.minimum(shifts, 30)) + stats.nct.cdf(
                -quantile, n - 1, np.minimum(shifts, 30)
            )
            cells = (np.nanmean(power), *np.nanquantile(power, [0.1, 0.9]))
            print(f"| {family} | {n} | {' | '.join(f'{100 * x:.0f}' for x in cells)} |")


def picked_arms(rng: np.random.Generator, samples: int) -> None:
    """Training noise 1, which validation and test share; test noise 0.5, the baseline's 0.5."""
    print("\n## The gain of the arm that is picked by validation\n")
    print(
        "| arms | their true means span | validation noise | n | bias, read on the seeds that picked | covered | bias, `pick` | covered |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for arms, span, noise, n in itertools.product((2, 4, 10), (0.0, 1.5), (0.1, 0.5, 1.2), SEEDS):
        means = np.linspace(0, span, arms)
        errors: list[list[float]] = [[], []]
        covered = [0, 0]
        for _ in range(samples // 2):
            training = rng.normal(0, 1, (n, arms))
            val = means + training + rng.normal(0, noise, (n, arms))
            gain = means + training + rng.normal(0, 0.5, (n, arms)) - rng.normal(0, 0.5, (n, 1))
            best, picks = pick(val)
            for slot, d in enumerate((mean_difference(gain[:, best]), gain_of_picking(gain, picks))):
                errors[slot].append(d.mean - means[best])
                covered[slot] += abs(errors[slot][-1]) <= d.half_width
        cells = [f"{np.mean(e):+.2f} | {100 * c / (samples // 2):.1f}" for e, c in zip(errors, covered, strict=True)]
        print(f"| {arms} | {span} | {noise} | {n} | {' | '.join(cells)} |")


def variance_shares(rng: np.random.Generator, samples: int) -> None:
    """4 x 3 x 2 levels: a strong factor, a weak one, their interaction, and one without effect in the mean, whose effect
    differs from seed to seed."""
    names = ("strong", "weak", "interaction", "none", "seed")
    print(
        f"\n## Shares of variance\n\n| design | n | {' | '.join(f'{name}: share, covered' for name in names)} | none: p < 0.05 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    a, b = np.array([-0.7, -0.4, -0.1, 1.2]), np.array([-0.2, 0.0, 0.2])
    ab = np.outer([0.3, -0.3, 0.3, -0.3], [0.5, 0.0, -0.5])
    seed_spread, by_seed, noise = 0.6, 0.5, 0.8
    variances = {("a",): (a**2).mean(), ("b",): (b**2).mean(), ("a", "b"): (ab**2).mean(), ("c",): 0.0, ("seed",): seed_spread**2}  # fmt: skip
    total = sum(variances.values()) + by_seed**2 / 2 + noise**2
    reps = samples // 8
    for design, n in itertools.product(("balanced", "1 run missing", "2 cells missing"), SEEDS):
        i, j, k, seed = (x.ravel() for x in np.meshgrid(range(4), range(3), range(2), range(n), indexing="ij"))
        covered, found = dict.fromkeys(variances, 0), 0
        for _ in range(reps):
            y = a[i] + b[j] + ab[i, j] + rng.normal(0, seed_spread, n)[seed] + rng.normal(0, noise, len(i))
            y += (rng.normal(0, by_seed, n) * [[-0.5], [0.5]] * np.sqrt(2))[k, seed]
            kept = np.ones(len(y), bool)
            if design == "1 run missing":
                kept[rng.integers(len(y))] = False
            if design == "2 cells missing":
                kept = ~((i == 0) & (j == 0))
            for term in shares(y[kept], {"a": i[kept], "b": j[kept], "c": k[kept]}, seed[kept]).terms:
                if term.factors in variances:
                    covered[term.factors] += term.low <= variances[term.factors] / total <= term.high
                    found += term.factors == ("c",) and term.p < 0.05
        cells = [f"{100 * variances[name] / total:.1f}, {100 * count / reps:.1f}" for name, count in covered.items()]
        print(f"| {design} | {n} | {' | '.join(cells)} | {100 * found / reps:.1f} |")


def associations(rng: np.random.Generator, samples: int) -> None:
    print("\n## Correlations over sources that do not go together\n\n| sources | p < 0.05 |\n|---|---|")
    for n in (5, 6, 8, 12):
        found = [association(*rng.standard_normal((2, n))).significant for _ in range(samples // 4)]
        print(f"| {n} | {100 * np.mean(found):.1f} |")
    print(
        "\n## Correlations over sources of two factors\n\nOf 100 tests with p < 0.05. Clustered: the first factor has an effect (deviation 1) on the "
        "measure and another on the gain, which do not go together; noise 0.3. Predictive: both factors have effects on the measure (deviation 1), "
        "and the gain is the measure with noise.\n"
    )
    print(
        "| levels | arrangements | smallest p | clustered: sources taken to be exchangeable | clustered: relabelled within factors "
        "| predictive (noise 0.3): relabelled | predictive (noise 1) |\n|---|---|---|---|---|---|---|"
    )
    for a, b in ((3, 2), (5, 2), (4, 3), (6, 2), (4, 4)):
        levels = dict(zip("ab", np.indices((a, b)).reshape(2, -1).tolist(), strict=True))
        found = []
        for _ in range(samples // 4):
            x, y = (rng.normal(0, 1, (a, 1)) + rng.normal(0, 0.3, (a, b)) for _ in range(2))
            z = rng.normal(0, 1, (a, 1)) + rng.normal(0, 1, b)
            tests = [
                (x, y, None),
                (x, y, levels),
                *((z, z + rng.normal(0, noise, (a, b)), levels) for noise in (0.3, 1)),
            ]
            found.append([association(one.ravel(), other.ravel(), of) for one, other, of in tests])
        rates = [f"{100 * np.mean([a.significant for a in column]):.1f}" for column in zip(*found, strict=True)]
        number = math.factorial(a) * math.factorial(b)
        smallest = min(row[2].smallest_p for row in found)
        print(f"| {a} × {b} | {number} | {smallest:.4f} | {' | '.join(rates)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print("# What intervals cover\n")
    print(
        f"`python benchmarks/coverage.py --samples {args.samples} --seed {args.seed}`, {date.today()}. Of 100 intervals at 95%.\n"
    )
    paired_differences(rng, args.samples)
    detectable(rng, args.samples)
    picked_arms(rng, args.samples)
    variance_shares(rng, args.samples)
    associations(rng, args.samples)


if __name__ == "__main__":
    main()
