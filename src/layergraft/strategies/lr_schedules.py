"""Schedules: what share of the learning rate is left at each step. Pure: numbers in, a number out.

Each is a function of the step alone, so that a resumed run has the rate that the run never stopped would have.
"""

from __future__ import annotations

import math

from layergraft.config.training_schema import ScheduleSpec

# PyTorch's OneCycleLR: it starts at 1/25 of the rate and ends at 1/10,000 of that.
START_SHARE, END_SHARE = 1 / 25, 1 / 25e4


def ramp(step: int, length: int) -> float:
    """A line that gives 1/length at step 0 and 1 from its last step, `length` - 1, on."""
    return min(1.0, (step + 1) / length) if length > 0 else 1.0


def num_steps(epochs: float, steps_per_epoch: int) -> int:
    """Steps in so many epochs, or in a part of one."""
    return round(epochs * steps_per_epoch)


def share(spec: ScheduleSpec, step: int, steps_per_epoch: int) -> float:
    """The share of the learning rate at `step` (from 0, over the whole training): warm-up, then the schedule."""
    warm = num_steps(spec.warmup, steps_per_epoch)
    if step < warm:
        return ramp(step, warm)
    step, total = step - warm, spec.epochs * steps_per_epoch - warm
    if spec.name == "constant":
        return 1.0
    if spec.name == "step":
        assert spec.gamma is not None and spec.step_epochs is not None  # by its check
        return spec.gamma ** (step // (spec.step_epochs * steps_per_epoch))
    if spec.name == "cosine":
        return (1 + math.cos(math.pi * step / total)) / 2
    assert spec.pct_start is not None  # by its check
    return _one_cycle(step, total, spec.pct_start)


def _one_cycle(step: int, total: int, pct_start: float) -> float:
    """Smith & Topin, Super-Convergence, 2018, as PyTorch's OneCycleLR has it by default (two halves of cosines), for the
    learning rate alone."""
    top, last = max(pct_start * total - 1, 0.0), total - 1
    if step <= top:
        return _between(START_SHARE, 1.0, step / top if top else 1.0)
    return _between(1.0, END_SHARE, (step - top) / (last - top))


def _between(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))
