"""Pictures of single runs, with matplotlib: what learned when, filters before and after."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layergraft.report.table import NONE
from layergraft.store.files import label, write_atomic
from layergraft.store.records import RunRecord, read_record
from layergraft.strategies import timeline

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FONT = {"font.size": 10, "svg.fonttype": "path"}
MAX_FILTERS = 8
MAX_RUNS = 8  # whose filters are drawn
MAX_PLANS = 16
SIDE, GAP = 42, 4  # pixels of a filter, and between two


def plans(records: dict[str, RunRecord], folder: Path) -> dict[str, str]:
    """Title -> SVG: a strategy's plan over the epochs, of one run with it, up to MAX_PLANS."""
    drawn = {}
    for strategy, record in itertools.islice(records.items(), MAX_PLANS):
        site, host = record.axes["site"], record.axes["host"]
        title = f"{strategy}, {host}{'' if site == NONE else f', donor at {site}'}"
        drawn[title] = save(timeline.figure(record.plan), folder, label("plan", strategy))
    return drawn


def filters(runs: pd.DataFrame, folder: Path) -> dict[str, str]:
    """Title -> SVG: a donor's filters as it was put in, and after the training of the run it is in.

    One run for each site and arm whose donor learned on, the first seed's, up to MAX_RUNS.
    """
    moved = runs[(runs.site != NONE) & (runs.get("drift", 0) > 0)].sort_values("seed", kind="stable")
    drawn: dict[str, str] = {}
    for _, run in moved.drop_duplicates(["site", "arm"]).iterrows():
        pair = _before_and_after(Path(run.folder)) if len(drawn) < MAX_RUNS else None
        if pair is not None:
            title = f"{run.arm}, {run.site}, {run.host}, seed {run.seed}"
            drawn[title] = save(_filters(*pair), folder, label("filters", run.arm, run.site, run.host))
    return drawn


def _before_and_after(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The first convolution of a donor, and what has become of it; None where files are gone, or it was resized."""
    from safetensors.numpy import load_file

    record = read_record(folder)
    for graft, donor in zip(record.grafts, record.donors, strict=True) if record else ():
        files = folder.parents[1] / "donors" / donor["key"] / "donor.safetensors", folder / "model.safetensors"
        if not all(file.exists() for file in files):
            return None
        before, after = map(load_file, files)
        name = next(name for name, weight in before.items() if weight.ndim == 4)
        part, at = next((part, at) for part, at in graft.donor_paths.items() if name.startswith(part))
        moved = after.get(f"{at}.{name.removeprefix(f'{part}.')}")
        if moved is not None and moved.shape == before[name].shape:
            return before[name], moved
    return None


def _filters(before: np.ndarray, after: np.ndarray) -> Figure:
    """Rows: before, after, and the change, magnified to the scale of the two; the first input channel of each filter."""
    from matplotlib.figure import Figure

    before, after = before[:MAX_FILTERS, 0], after[:MAX_FILTERS, 0]
    limit = float(np.abs([before, after]).max()) or 1.0
    times = limit / (float(np.abs(after - before).max()) or limit)
    rows = {"before": before, "after": after, f"change × {times:.2g}": (after - before) * times}
    wide = 0.8 * len(before)  # inches of the filters, beside those of their names
    figure = Figure(figsize=(1.4 + wide, 2.6))
    axis = figure.add_axes((1.2 / (1.4 + wide), 0.04, wide / (1.4 + wide), 0.92))
    # One picture of all of them: an axis for each filter takes matplotlib ten times as long.
    axis.imshow(_tiled(list(rows.values())), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_yticks([SIDE / 2 + row * (SIDE + GAP) for row in range(len(rows))], list(rows))
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def _tiled(rows: Sequence[np.ndarray]) -> np.ma.MaskedArray:
    """Filters (N, H, W) of each row, every one SIDE pixels a side, with gaps between them that are masked."""
    weights_RNHW = np.array(rows, float)
    *_, height, width = weights_RNHW.shape
    of = np.arange(SIDE)
    large = weights_RNHW[:, :, of * height // SIDE][..., of * width // SIDE]
    tiles = np.pad(large, ((0, 0), (0, 0), (0, GAP), (0, GAP)), constant_values=np.nan).transpose(0, 2, 1, 3)
    return np.ma.masked_invalid(tiles.reshape(len(rows) * (SIDE + GAP), -1)[:-GAP, :-GAP])


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write `folder`/NAME.png and NAME.svg; the SVG's text, to stand in a page."""
    import matplotlib

    png, svg = io.BytesIO(), io.StringIO()
    settings: Any = FONT | {"svg.hashsalt": name}
    with matplotlib.rc_context(settings):  # the same ids in the same figure
        figure.savefig(png, format="png", dpi=150)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    write_atomic(folder / f"{name}.png", png.getvalue())
    write_atomic(folder / f"{name}.svg", svg.getvalue())
    return svg.getvalue()[svg.getvalue().index("<svg") :]
