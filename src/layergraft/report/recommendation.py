"""Which of many ways to load a layer, from few and short runs: successive halving, and what its last runs show.

Source: Jamieson & Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, 2016: all arms run briefly, the
better third goes on for longer. Arms are chosen by validation accuracy. Those that are left run on seeds that the choice
has not seen, beside the host without a donor, so that what they gain is not what made them be chosen. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layergraft.errors import counted
from layergraft.report.narrative import describe_difference
from layergraft.stats import Difference, gain_of_picking, mean_difference, pick, together

CUT = 3  # of the arms of a round one in so many goes on


@dataclass(frozen=True)
class Round:
    """Runs of the same length, of the arms that are left."""

    epochs: int
    seeds: tuple[int, ...]
    num_arms: int


def rounds(num_arms: int, finalists: int, epochs: int, seeds: int, first: int, shortest: int = 1) -> list[Round]:
    """The rounds that `num_arms` go through: short ones of one seed that leave `finalists`, then one of `epochs` epochs.

    None is shorter than `shortest` epochs. The last has `seeds` seeds from `first` on, the others the one after these.
    """
    arms = []
    while num_arms > finalists:
        arms.append(num_arms)
        num_arms = max(finalists, -(-num_arms // CUT))
    lengths = [max(shortest, round(epochs / 2**left)) for left in range(len(arms), 0, -1)]
    found = [Round(length, (first + seeds,), number) for length, number in zip(lengths, arms, strict=True)]
    return [*found, Round(epochs, tuple(range(first, first + seeds)), num_arms)]


def cost(planned: Sequence[Round], epochs: int) -> float:
    """In runs of `epochs` epochs, the runs without a donor of the last round included."""
    last = planned[-1]
    return (sum(r.epochs * len(r.seeds) * r.num_arms for r in planned) + last.epochs * len(last.seeds)) / epochs


@dataclass(frozen=True)
class Advice:
    """What the last round shows, in points of test accuracy."""

    arm: int
    gain: Difference | None
    """Over the host without a donor, of the arm that the other seeds pick, seed by seed; None where no seed has both."""
    test: float
    """Mean test accuracy of the arm, percent."""
    others: dict[int, Difference]
    """What each other finalist gains over the arm, one family."""


def advise(val_AS: np.ndarray, test_AS: np.ndarray, without_S: np.ndarray) -> Advice:
    """The finalist to take: the best by validation. `without_S` are the test accuracies of the host without a donor.

    An arm or a seed that lacks a run does not count; at least one arm must be whole.
    """
    whole = np.flatnonzero(~np.isnan(val_AS + test_AS).any(1)).tolist()
    chosen, picks_S = pick(val_AS[whole].T)
    gain = gain_of_picking((test_AS[whole] - without_S).T, picks_S)
    arm = whole[chosen]
    rest = [other for other in whole if other != arm]
    others = together(mean_difference(test_AS[other] - test_AS[arm]) for other in rest)
    return Advice(arm, gain, float(test_AS[arm].mean()), dict(zip(rest, others, strict=True)))


def in_lines(advice: Advice, names: Sequence[str], seeds: int, epochs: int) -> list[str]:
    """The advice for a reader, the arms by `names`."""
    ran = f"after {counted(epochs, 'epoch')} (mean of {counted(seeds, 'seed')})"
    lines = [f"take {names[advice.arm]}: test accuracy {advice.test:.1f}% {ran}"]
    if advice.gain is None:
        lines.append("whether the donor helps is not known: no run without it was completed")
    else:
        said = "the donor helps" if advice.gain.mean > 0 else "leave the donor out (donor=none)"
        said = said if advice.gain.significant else "whether the donor helps is not known"
        lines.append(f"{said}: compared with the host without it {describe_difference(advice.gain)}")
    for other, difference in advice.others.items():
        lines.append(f"{names[other]}, compared with the arm to take: {describe_difference(difference)}")
    return lines
