"""The registry of metrics: of which tasks each is, its unit, and whether more or less of it is better. The functions are in
`layergraft.metrics`; other packages add theirs with the same decorator (docs/extend.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from layergraft.config.plugins import installed
from layergraft.errors import require, unknown

if TYPE_CHECKING:
    from torch import Tensor

TASKS = ("multi_class", "multi_label", "ordinal")
Function = TypeVar("Function", bound=Callable[..., float])


@dataclass(frozen=True)
class Metric:
    """A number that runs are compared by."""

    unit: str
    better: Any
    """max or min; None: neither is."""
    tasks: tuple[str, ...] = TASKS
    function: Callable[[Tensor, Tensor], float] | None = None
    """(logits_NC, y_N) -> the value; None: it is counted batch by batch, or derived from curves and probes."""

    @property
    def direction(self) -> str:
        """Which way is better: higher, lower, or "" for neither."""
        words: dict[Any, str] = {max: "higher", min: "lower"}
        return words.get(self.better, "")

    @property
    def unit_of_difference(self) -> str:
        """Two percentages differ by points."""
        return "points" if self.unit == "%" else self.unit


# By the last part of its name in a record: val/loss, test/loss. Losses and accuracies are counted batch by batch.
_METRICS = {"acc": Metric("%", max), "loss": Metric("nats", min)}
# By its whole name in a record: what is derived from the curves and the probes.
_DERIVED = {
    "train/loss": _METRICS["loss"],
    "val/aulc": Metric("%", max),
    "step0/acc": _METRICS["acc"],  # of the run's own network on the validation images, before the first step
    "step0/loss": _METRICS["loss"],
    "shock/acc": Metric("points", max),
    "shock/loss": Metric("nats", min),
    "drift": Metric("relative", None),
}
_STEPS = Metric("steps", min)  # of steps_to/recover, and steps_to/N for each N of exec.probe.thresholds


def metric(*tasks: str, unit: str, better: Callable[..., Any]) -> Callable[[Function], Function]:
    """Function decorator: register `(logits_NC, y_N) -> float` as a metric of these tasks, under the function's name.

    Every run on data of such a task records it as `val/NAME`, after each epoch, and as `test/NAME`. `better` is max or min;
    a unit of "%" has differences in points. The logits are finite float32, the labels int64 (of a multi-label set (N,
    labels) of 0 and 1), both on the CPU; nan says that the value is not defined for these labels. Raises UserError for a
    task that is none, and for a name that is taken.
    """
    for task in tasks:
        if task not in TASKS:
            raise unknown("task of a metric", task, TASKS)

    def store(function: Function) -> Function:
        name, before = function.__name__, _METRICS.get(function.__name__)
        is_own = before is not None and getattr(before.function, "__module__", None) == function.__module__
        is_free = before is None and f"val/{name}" not in _DERIVED
        require(
            is_free or is_own,
            f"a metric of the name {name} is registered already; give {function.__module__}'s another",
        )
        _METRICS[name] = Metric(unit, better, tasks, function)
        return function

    return store


def metrics_of(task: str) -> dict[str, Metric]:
    """Name -> metric, of those that data of this task have, other packages' included."""
    installed()
    return {name: of for name, of in _METRICS.items() if task in of.tasks}


def recorded(task: str, thresholds: Iterable[float]) -> dict[str, Metric]:
    """What the record of a run on data of this task may have: name -> metric."""
    judged = {f"{split}/{name}": of for split in ("test", "val") for name, of in metrics_of(task).items()}
    steps = dict.fromkeys(["steps_to/recover", *(f"steps_to/{threshold:g}" for threshold in thresholds)], _STEPS)
    return judged | _DERIVED | steps


def lookup(name: str) -> Metric | None:
    """The metric of this name in a record, of whatever task; None for that of a package that is not installed here."""
    installed()
    split, _, own = name.rpartition("/")
    if split == "steps_to":
        return _STEPS
    return _DERIVED.get(name) or (_METRICS.get(own) if split in ("val", "test") else None)


def watchable(task: str | None = None) -> list[str]:
    """What a plateau may be judged by: names in the curves; with a `task`, those that its data have."""
    installed()
    return [*(f"val/{name}" for name, of in _METRICS.items() if task is None or task in of.tasks), "train/loss"]
