"""A plan over the epochs, as plain data: what `layergraft plan` prints, the record keeps and the picture shows."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from layergraft.config.training_schema import ScheduleSpec
from layergraft.strategies.phases import Curves, TrainingPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray


def timeline(
    plan: TrainingPlan,
    lr: float,
    schedule: ScheduleSpec,
    steps_per_epoch: int,
    size_of: Callable[[str], int],
    curves: Curves = (),
) -> dict[str, Any]:
    """Groups with their sizes and phases, and the learning rate of each in the first and the last step of each epoch.

    `size_of` gives the number of a parameter's elements. Without `curves` it is what is planned: phases that wait for a
    plateau start at the latest. With them it is what was done: as many epochs as there are points, the phases that came.
    """
    epochs = len(curves) or schedule.epochs
    ends = [(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1) for epoch in range(epochs)]
    rates = [[plan.rates(schedule, step, steps_per_epoch, curves) for step in steps] for steps in ends]
    return {
        "epochs": epochs,
        "tensor_lr": plan.tensor_lr,
        "groups": {
            group: {
                "tensors": list(names),
                "parameters": sum(size_of(name) for name in names),
                "lr": [[lr * first[group], lr * last[group]] for first, last in rates],
            }
            for group, names in plan.groups.items()
        },
        "phases": [
            {"name": phase.name, "epoch": start, "plateau": _words(phase.plateau),
             "batch_norm_statistics": [group for group in plan.groups if group in phase.batch_norm_statistics]}
            for phase, start in zip(plan.phases, plan.starts(curves), strict=True) if start < epochs
        ],
    }  # fmt: skip


def _words(plateau: Any) -> str | None:
    words = f"or as soon as {plateau.metric} has not been better for {plateau.patience} epochs"
    return None if plateau.patience is None else words


def stretches(line: dict[str, Any]) -> list[tuple[int, int]]:
    """(first, last) epoch of each stretch over which no group's rate or freezing changes."""
    epochs = line["epochs"]
    column = [tuple(tuple(group["lr"][epoch]) for group in line["groups"].values()) for epoch in range(epochs)]
    starts = {phase["epoch"] for phase in line["phases"]}
    firsts = [epoch for epoch in range(epochs) if not epoch or epoch in starts or column[epoch] != column[epoch - 1]]
    return [(first, after - 1) for first, after in pairwise([*firsts, epochs])]


def covered(names: Sequence[str], every: Sequence[str]) -> list[str]:
    """`names`, shortened: `layer1.*` where all parameters of `every` below layer1 are among them."""
    others, short = set(every) - set(names), []
    for name in names:
        prefixes = accumulate(f"{part}." for part in name.split(".")[:-1])
        whole = (f"{prefix}*" for prefix in prefixes if not any(other.startswith(prefix) for other in others))
        short.append(next(whole, name))
    return list(dict.fromkeys(short))


def figure(line: dict[str, Any]) -> Figure:
    """Groups by epochs, the learning rate by colour (logarithmic), grey where frozen; dashed lines where phases start."""
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    groups = {name: group for name, group in line["groups"].items() if group["tensors"]}
    rates = np.array([[math.sqrt(a * b) for a, b in group["lr"]] for group in groups.values()])
    shown = np.ma.masked_equal(rates, 0)
    high = rates.max()
    low = min(shown.min(), high / 10)
    labels = [f"{_short(name)}, {group['parameters']:,}" for name, group in groups.items()]
    # Laid out by hand, in inches: matplotlib's own layout takes longer than the drawing, and each run is drawn.
    width, height = 6.5, max(1.7, 0.85 + 0.3 * len(groups))
    left, bottom, bar = 0.3 + 0.085 * max(map(len, labels)), 0.6, 0.15
    drawing = Figure(figsize=(width, height))

    def at(x: float, y: float, w: float, h: float) -> Axes:
        return drawing.add_axes((x / width, y / height, w / width, h / height))

    axis = at(left, bottom, width - left - 1.2, height - bottom - 0.1)
    axis.set_facecolor("0.85")
    axis.pcolormesh(shown, cmap="viridis", norm=LogNorm(low, high))
    axis.set_yticks(np.arange(len(groups)) + 0.5, labels)
    axis.invert_yaxis()
    for phase in line["phases"][1:]:
        axis.axvline(phase["epoch"], color="white", linestyle="--", linewidth=1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch; grey: frozen")
    scale = at(width - 1.1, bottom, bar, height - bottom - 0.1)
    drawing.colorbar(ScalarMappable(LogNorm(low, high), "viridis"), cax=scale, label="learning rate")
    return drawing


def _short(name: str) -> str:
    """A name that leaves room for the drawing, and is no formula of matplotlib's."""
    shown = "".join(c if c.isprintable() else "?" for c in name)
    return (shown if len(shown) <= 28 else f"{shown[:27]}…").replace("$", r"\$")


@lru_cache(maxsize=64)
def picture(line_json: str) -> ndarray:
    """`figure` of a timeline in JSON, as pixels (H, W, 3) uint8; runs of a sweep share their plans."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure(json.loads(line_json)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a name in a script that the font has not
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
