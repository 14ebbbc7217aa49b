"""What a sweep says, and how sure it is: paired differences, picked arms, shares of variance. numpy and scipy; no torch."""

from layergraft.stats.factors import Share, Shares, shares
from layergraft.stats.paired import Difference, difference, holm, mean_difference
from layergraft.stats.picking import Picked, pick

__all__ = ["Difference", "Picked", "Share", "Shares", "difference", "holm", "mean_difference", "pick", "shares"]
