"""The report's figures, with matplotlib. Each function returns a Figure."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from layergraft.files import write_atomic

FONT = {"font.size": 10, "svg.fonttype": "path"}


def heat_maps(tables: Mapping[str, pd.DataFrame], unit: str) -> Figure:
    """A panel a setting: arms x sites, the mean paired difference by colour, with its interval as text.

    A cell whose interval holds 0 is pale: these seeds do not resolve it.
    """
    means = [d.mean for table in tables.values() for d in table.to_numpy().ravel() if d is not None]
    limit = max([abs(mean) for mean in means] + [0.1])
    num_rows = max(len(table) for table in tables.values())
    figure = Figure(figsize=(2.6 + 4.0 * len(tables), 1.4 + 0.52 * num_rows), layout="constrained")
    axes = figure.subplots(1, len(tables), squeeze=False)[0]
    for axis, (setting, table) in zip(axes, tables.items(), strict=True):
        cells = table.to_numpy()
        means = np.array([[0.0 if d is None else d.mean for d in row] for row in cells])
        opacity = np.array([[1.0 if d is not None and d.resolved else 0.3 for d in row] for row in cells])
        axis.imshow(means, cmap="RdBu", vmin=-limit, vmax=limit, alpha=opacity, aspect="auto")
        axis.set_title(setting)
        axis.set_xticks(range(len(table.columns)), table.columns)
        axis.set_yticks(range(len(table.index)), table.index if axis is axes[0] else [""] * len(table.index))
        for (row, column), d in np.ndenumerate(cells):
            resolved = d is not None and d.resolved
            ink = "white" if resolved and abs(d.mean) > 0.55 * limit else "black" if resolved else "0.35"
            weight = "bold" if resolved else "normal"
            axis.text(column, row, str(d or "no pair"), ha="center", va="center", color=ink, weight=weight)
    scale = ScalarMappable(Normalize(-limit, limit), "RdBu")
    figure.colorbar(scale, ax=list(axes), label=unit, shrink=0.9)
    return figure


def learning_curves(runs: pd.DataFrame, curves: Mapping[str, pd.DataFrame]) -> Figure:
    """A panel a setting: validation accuracy by epoch, one line an arm, mean over sites and seeds.

    The band is one standard error of the seeds' means.
    """
    settings = list(runs.setting.unique())
    longest = max(len(curves[key]) for key in runs.key)
    accuracies = {key: curves[key]["val/acc"].to_numpy() for key in runs.key}
    # A run that was stopped early stays where it was.
    accuracies = {key: np.pad(values, (0, longest - len(values)), mode="edge") for key, values in accuracies.items()}
    figure = Figure(figsize=(1.5 + 4.6 * len(settings), 3.8), layout="constrained")
    axes = figure.subplots(1, len(settings), squeeze=False, sharey=True)[0]
    for axis, setting in zip(axes, settings, strict=True):
        for arm, group in runs[runs.setting == setting].groupby("arm"):
            by_seed = [np.mean([accuracies[key] for key in seed.key], 0) for _, seed in group.groupby("seed")]
            mean = np.mean(by_seed, 0)
            (line,) = axis.plot(np.arange(1, len(mean) + 1), mean, label=arm)
            if len(by_seed) > 1:
                error = np.std(by_seed, 0, ddof=1) / np.sqrt(len(by_seed))
                axis.fill_between(
                    np.arange(1, len(mean) + 1), mean - error, mean + error, color=line.get_color(), alpha=0.15, lw=0
                )
        axis.set_title(setting)
        axis.set_xlabel("epochs trained")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("validation accuracy, %")
    axes[-1].legend(fontsize=8, frameon=False)
    return figure


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write `folder`/NAME.png and NAME.svg; the SVG's text, to stand in a page."""
    import matplotlib

    png, svg = io.BytesIO(), io.StringIO()
    with matplotlib.rc_context(FONT | {"svg.hashsalt": name}):  # the same ids in the same figure
        figure.savefig(png, format="png", dpi=150)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    write_atomic(folder / f"{name}.png", png.getvalue())
    write_atomic(folder / f"{name}.svg", svg.getvalue())
    return svg.getvalue()[svg.getvalue().index("<svg") :]
