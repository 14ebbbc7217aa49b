"""Schedules against sequences written by hand, and against torch's own."""

import warnings

import pytest
import torch

from layergraft.config.registry import validate
from layergraft.config.training_schema import PlateauSpec, ScheduleSpec
from layergraft.errors import UserError
from layergraft.strategies.lr_schedules import ramp, share

WRITTEN = {
    "constant": (ScheduleSpec("constant", 3), [1, 1, 1, 1, 1, 1]),
    "cosine": (ScheduleSpec("cosine", 4), [1, 0.961939766, 0.853553391, 0.691341716, 0.5, 0.308658284, 0.146446609, 0.038060234]),
    "step": (ScheduleSpec("step", 5, step_epochs=2, gamma=0.2), [1, 1, 1, 1, 0.2, 0.2, 0.2, 0.2, 0.04, 0.04]),
    "one_cycle": (ScheduleSpec("one_cycle", 5, pct_start=0.4), [0.04, 0.28, 0.76, 1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873, 0.000004]),
    "warm-up, constant": (ScheduleSpec("constant", 4, warmup=2), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
    "warm-up, half an epoch": (ScheduleSpec("constant", 2, warmup=0.5), [1, 1, 1, 1]),
    "warm-up, cosine": (ScheduleSpec("cosine", 4, warmup=2), [0.25, 0.5, 0.75, 1, 1, 0.853553391, 0.5, 0.146446609]),
    "warm-up, step": (ScheduleSpec("step", 4, warmup=1, step_epochs=1, gamma=0.1), [0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_schedule_is_the_sequence_written_here(name):
    spec, expected = WRITTEN[name]
    steps = 2
    assert [share(spec, step, steps) for step in range(spec.epochs * steps)] == pytest.approx(
        expected, abs=1e-5 if name == "one_cycle" else 1e-9
    )


def torch_sequence(make, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step()
    return rates


@pytest.mark.parametrize("epochs, pct", [(10, 0.3), (7, 0.5), (30, 0.1)])
def test_one_cycle_is_torchs(epochs, pct):
    total = epochs * 3
    theirs = torch_sequence(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total, pct_start=pct, cycle_momentum=False), total - 1
    )
    spec = ScheduleSpec("one_cycle", epochs, pct_start=pct)
    assert [share(spec, step, 3) for step in range(total - 1)] == pytest.approx(theirs, abs=1e-12)


def test_cosine_is_torchs():
    theirs = torch_sequence(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30), 30)
    assert [share(ScheduleSpec("cosine", 10), step, 3) for step in range(30)] == pytest.approx(theirs, abs=1e-12)


def test_no_rate_is_ever_zero():
    for spec, _ in WRITTEN.values():
        assert min(share(spec, step, 7) for step in range(spec.epochs * 7)) > 0


def test_ramp():
    assert [ramp(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert ramp(0, 0) == 1.0


BAD = {
    "name": (ScheduleSpec("cosin"), "unknown schedule in schedule.name: 'cosin'; did you mean 'cosine'?"),
    "no gamma": (ScheduleSpec("step", step_epochs=3), "schedule.gamma is None, but schedule.name=step; it is needed"),
    "gamma elsewhere": (ScheduleSpec("cosine", gamma=0.1), "schedule.gamma is 0.1, but schedule.name=cosine; only step has it"),
    "warm-up too long": (ScheduleSpec(epochs=5, warmup=5), "schedule.warmup is 5 epochs; it must be 0 or more and less than schedule.epochs=5"),
    "gamma": (ScheduleSpec("step", step_epochs=3, gamma=1.5), "schedule.gamma is 1.5; it must be in (0, 1]"),
    "metric": (ScheduleSpec(early_stopping=PlateauSpec("val/los", 2)), "unknown schedule.early_stopping.metric 'val/los'; did you mean 'val/loss'?"),
    "patience": (ScheduleSpec(early_stopping=PlateauSpec(patience=0)), "schedule.early_stopping.patience is 0; it must be 1 or more"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_named(case):
    spec, message = BAD[case]
    with pytest.raises(UserError) as error:
        validate(spec, "schedule")
    assert message in str(error.value)
