"""What a sweep says, and how sure it is: paired differences, picked arms, shares of variance, seeds until precise. numpy, pandas and
scipy; no torch."""

from layergraft.stats.anova import Share, Shares, factorial, shares
from layergraft.stats.arm_selection import gain_of_picking, pick
from layergraft.stats.association import Association, association, comparable
from layergraft.stats.multiple_comparisons import holm, together, together_where_known
from layergraft.stats.paired_differences import Difference, complete, difference, mean_difference
from layergraft.stats.sequential_precision import seeds_to_add, widened, widening

__all__ = [
    "Association", "Difference", "Share", "Shares", "association", "comparable", "complete", "difference", "factorial", "gain_of_picking", "holm",
    "mean_difference", "pick", "seeds_to_add", "shares", "together", "together_where_known", "widened", "widening",
]  # fmt: skip
