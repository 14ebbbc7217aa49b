"""The report as files: report.html, which needs no network, report.md, the figures, the table of runs."""

from __future__ import annotations

import base64
import math
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from layergraft.config.metric_registry import lookup
from layergraft.report import figures, run_figures
from layergraft.report.compute import compute
from layergraft.report.contrasts import NO_GRAFT, RANDOM
from layergraft.report.curves import learning_curves, recovery_curves, validation_accuracies
from layergraft.report.findings import Findings, find, measures_of
from layergraft.report.headline import headline
from layergraft.report.loading import Recovery
from layergraft.report.narrative import IN_WORDS, describe_difference, describe_metric, sentences
from layergraft.report.table import AXES, MEASURED, NONE, TOLD, Runs, require_completed
from layergraft.report.tuned_arms import tuning_curves
from layergraft.stats import Difference, Shares
from layergraft.store.files import write_atomic
from layergraft.store.records import RECORD

REST = "the rest: seed × factors, and noise"
LIST = ".layergraft"  # in figures/: which of them are the report's


def write_report(runs: Runs, folder: Path) -> Path:
    """Write all of it into `folder`; the page's path. Raises UserError where no run was completed."""
    require_completed(runs)
    found = find(runs)
    table = runs.table.assign(record=[os.path.relpath(Path(path) / RECORD, folder) for path in runs.table.folder])
    table = table.join(found.design.runs.set_index("key")[["arm", "setting"]], on="key").drop(columns="folder")
    axes = [name for name in found.design.axes if found.design.runs[name].nunique() > 1]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".figures.") as new:
        curves = validation_accuracies(found.design.runs)
        charts = _charts(found, axes, table, curves, Path(new))
        filters = run_figures.filters(found.design.runs, Path(new))
        drawn = {"plans": run_figures.plans(runs.plans, Path(new)), "filters": filters}
        _move(Path(new), folder / "figures")
    write_atomic(folder / "runs.csv", table.to_csv(index=False))
    write_atomic(folder / "runs.parquet", table.to_parquet(index=False))
    cells = [figures.estimates(cells).assign(metric=metric) for metric, cells in found.gains.items() if len(cells)]
    write_atomic(folder / "cells.csv", pd.concat(cells).drop(columns="text").to_csv(index=False) if cells else "")
    by_arm = found.design.runs.groupby(["setting", "arm", "site"], sort=False)["test/acc"]
    accuracies = by_arm.agg(["mean", "std", "count"]).reset_index().sort_values(["setting", "arm"], kind="stable")
    told: dict[str, Any] = {
        "runs": runs, "found": found, "charts": set(charts), "drawn": drawn, "words": describe_difference,
        "measured": partial(describe_metric, units=runs.units), "metrics": _metrics(runs),
        "headlines": [headline(one) for one in found.loadings], "answer": sentences(found), "cut": _cut(found), "recovers": any(found.costs.recovery), "num_plans": len(runs.plans),
        "compute": compute(found.design, found.tuned, curves), "no_graft": NO_GRAFT, "random": RANDOM, "margins": any(c.difference and c.difference.margin for c in found.contrasts),
        "statuses": Counter(table.status), "troubled": table[table.status != "completed"].to_dict("records"),
        "seeds": sorted(found.design.runs.seed.unique()), "seconds": float(table.seconds.sum()),
        "accuracies": accuracies.to_dict("records"), "axes": axes, "rest": REST, "panels": figures.PANELS,
        "controls": list(dict.fromkeys(name for answer in found.answers for name in answer.gains)),
    }  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("layergraft.report", "templates"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=jinja2.select_autoescape(["html.j2"]),
    )  # fmt: skip
    environment.filters |= {"cell": _escaped, "p": _p, "percent": _percent, "figure": _figure, "steps": _steps}
    write_atomic(folder / "report.md", environment.get_template("report.md.j2").render(told))
    told |= {
        "vega": figures.script(), "specs": figures.in_page(charts), "data_tables": _data_tables(),
        "rows": figures.in_page(_rows(table)),
        "levels": {name: sorted(map(str, found.design.runs[name].unique()), key=_naturally) for name in axes},
    }  # fmt: skip
    write_atomic(folder / "report.html", environment.get_template("report.html.j2").render(told))
    return folder / "report.html"


def _metrics(runs: Runs) -> list[tuple[str, str, str]]:
    """Each metric that these runs have: its name, its unit, and which way is better ("" where neither is, or that is not known
    here)."""
    known = [(name, unit, lookup(name)) for name, unit in runs.units.items()]
    return [(name, unit, metric.direction if metric else "") for name, unit, metric in known]


def _move(new: Path, figures: Path) -> None:
    """The files of `new` to `figures`, of which those that a report before has listed go; others there are somebody's own."""
    listed = figures / LIST
    before = listed.read_text().split("\n") if listed.exists() else []
    names = sorted(path.name for path in new.iterdir())
    figures.mkdir(exist_ok=True)
    for name in names:
        (new / name).replace(figures / name)
    for name in {Path(name).name for name in before} - {"", *names}:
        (figures / name).unlink(missing_ok=True)
    write_atomic(listed, "\n".join(names))


def _escaped(text: object) -> str:
    """Text in a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _p(p: float | None) -> str:
    return "-" if p is None or math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _percent(better: Difference) -> str:
    """A share of cells, told as its difference to 50."""
    low, high = np.clip(50 + better.mean + np.array([-1, 1]) * better.half_width, 0, 100)
    interval = f" ({low:.0f} to {high:.0f})" if math.isfinite(better.half_width) else ""
    return f"{50 + better.mean:.0f}{interval}"


def _figure(numbers: tuple[float, float] | float, decimals: int = 0) -> str:
    """A number, or the range of two that differ; - where it is not known."""
    low, high = numbers if isinstance(numbers, tuple) else (numbers, numbers)
    if math.isnan(low):
        return "-"
    return f"{low:,.{decimals}f}" if low == high else f"{low:,.{decimals}f} to {high:,.{decimals}f}"


def _steps(recovery: Recovery | None) -> str:
    """Steps of the median run to the intact host's loss, and how many runs got there."""
    if recovery is None:
        return "-"
    told = "never" if math.isinf(recovery.median) else f"{recovery.median:.0f}"
    return f"{told} ({recovery.recovered} of {recovery.runs})"


def _cut(found: Findings) -> dict[str, int]:
    """Figure -> how many panels it would have, where it has the first PANELS of them."""
    numbers = dict.fromkeys(("gain", "speed", "learning_curves", "shock"), len(found.design.settings))
    numbers["ladder"] = found.ladder.cell.nunique() if len(found.ladder) else 0
    return {name: number for name, number in numbers.items() if number > figures.PANELS}


def _charts(
    found: Findings, axes: list[str], table: pd.DataFrame, accuracies: Mapping[str, list[float]], folder: Path
) -> dict[str, Any]:
    """Name -> specification; PNG and SVG are written into `folder`. `accuracies`: key -> validation accuracy by epoch."""
    over = {NO_GRAFT: "over no graft", RANDOM: "over a random layer under the same strategy"}.get(
        found.baseline or "", ""
    )
    units = {metric: f"{unit}, {over}" for metric, unit in IN_WORDS.items()}
    arms = list(found.design.runs.arm.unique())
    drawn: dict[str, Any] = {}
    compared = [{"contrast": c.name, "metric": describe_metric(c.metric, found.runs.units), "difference": c.difference}
                for c in found.contrasts if c.difference is not None]  # fmt: skip
    if compared:
        drawn["contrasts"] = figures.forest(pd.DataFrame(compared), axes, None, "contrast", panel="metric")
    for metric, name in (("test/acc", "gain"), ("val/aulc", "speed")):
        if len(found.gains.get(metric, ())):
            drawn[name] = figures.heat_map(found.gains[metric], axes, units[metric])
    lines = learning_curves(found.design, accuracies)
    if len(lines):
        drawn["learning_curves"] = figures.learning_curves(lines, axes, arms)
    lines = recovery_curves(found.design, accuracies)
    if len(lines):
        drawn["recovery"] = figures.recovery_curves(lines, axes, arms)
    if len(found.shocks):
        unit = "points of validation accuracy at step 0, grafted less intact"
        drawn["shock"] = figures.forest(
            found.shocks, axes, unit, "site", "kind" if found.shocks.kind.nunique() > 1 else None
        )
    by_run = found.by_run.merge(table[["key", "record"]], on="key").dropna(subset="gain")
    columns = ["key", "record", "arm", "setting", "gain", *axes]
    if "drift" in by_run and (by_run.drift > 0).any():
        moved = by_run.dropna(subset="drift")[[*columns, "drift"]]
        drawn["drift"] = figures.scatter(moved, axes, arms, "drift", units["test/acc"])
    if len(found.tuned):
        drawn["tuning"] = figures.tuning_curves(tuning_curves(found.tuned), axes, arms)
    if found.shares is not None:
        drawn["shares"] = figures.share_bars(_share_rows(found.shares))
    if len(found.ladder):
        drawn["ladder"] = figures.forest(found.ladder, axes, units["test/acc"], "donor", "strategy", panel="cell")
    measures = measures_of(by_run)
    if measures:
        long = by_run.melt([*columns], measures, "measure", "value").dropna(subset="value")
        long["measure"] = long.measure.str.removeprefix("similarity/")
        drawn["similarity"] = figures.scatter(long, axes, arms, "value", units["test/acc"], panel="measure")
    return {name: figures.save(chart, folder, name) for name, chart in drawn.items()}


def _share_rows(shares: Shares) -> pd.DataFrame:
    return pd.DataFrame([
        {"term": " × ".join(s.factors) or REST, "raw": 100 * s.raw, "p": s.p, "low": 100 * s.low, "high": 100 * s.high,
         "interval": "" if np.isnan(s.low) else f"{100 * s.low:.1f} to {100 * s.high:.1f}"}
        for s in shares.terms
    ])  # fmt: skip


def _rows(table: pd.DataFrame) -> dict[str, Any]:
    """The table of runs for the page: figures to 5 digits."""
    known = ["status", "error", "arm", "setting", "record"]
    metrics = [name for name in table if "/" in name or name in ("drift", *TOLD, *MEASURED)]
    swept = [name for name in table if name not in (*known, *metrics, *AXES, "key")]
    order = ["key", "status", *AXES, *swept, "test/acc", *(m for m in metrics if m != "test/acc"), "error", "record"]
    plain = table.reindex(columns=order).astype(object)
    data = [[_plain(value) for value in row] for row in plain.itertuples(index=False)]
    return {"columns": order, "data": data, "axes": [*AXES, *swept]}


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    if isinstance(value, (float, np.floating)):
        return "never" if math.isinf(value) else float(f"{value:.5g}")  # steps to what was not reached
    return int(value) if isinstance(value, np.integer) else value


def _naturally(text: str) -> tuple[bool, float, str]:
    try:
        return (text == NONE, float(text), "")
    except ValueError:
        return (text == NONE, 0.0, text)


@lru_cache(maxsize=1)
def _data_tables() -> dict[str, str]:
    """DataTables, as itables ships it: its style, and its module in base 64."""
    files = resources.files("itables") / "html"
    module = base64.b64encode((files / "dt_bundle.js").read_bytes()).decode()
    return {"style": (files / "dt_bundle.css").read_text(), "module": module}
