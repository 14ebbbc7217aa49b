"""The report as files: report.html, which needs no network, report.md, the figures, the table of runs."""

from __future__ import annotations

import base64
import os
import shutil
from collections import Counter
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from layergraft.files import write_atomic
from layergraft.report import figures, pictures
from layergraft.report.contrasts import RANDOM, SCRATCH
from layergraft.report.findings import Findings, curves, find, measures_of, words
from layergraft.report.table import AXES, NONE, Runs, require_completed
from layergraft.store import RECORD

UNITS = {"test/acc": "points of test accuracy", "val/aulc": "points of mean validation accuracy over training"}


def write_report(runs: Runs, folder: Path) -> Path:
    """Write all of it into `folder`; the page's path. Raises UserError where no run was completed."""
    require_completed(runs)
    found = find(runs)
    table = runs.table.assign(record=[os.path.relpath(Path(path) / RECORD, folder) for path in runs.table.folder])
    labels = found.design.runs.set_index("key")[["arm", "setting"]]
    table = table.join(labels, on="key").drop(columns="folder")
    write_atomic(folder / "runs.csv", table.to_csv(index=False))
    write_atomic(folder / "runs.parquet", table.to_parquet(index=False))
    cells = [figures.estimates(cells).assign(metric=metric) for metric, cells in found.gains.items() if len(cells)]
    if cells:
        write_atomic(folder / "cells.csv", pd.concat(cells).drop(columns="text").to_csv(index=False))
    shutil.rmtree(folder / "figures", ignore_errors=True)  # those of other runs, or of what the report drew before
    axes = [name for name in found.design.axes if table[name][table.status == "completed"].nunique() > 1]
    charts, titles = _charts(found, axes, table, folder / "figures")
    drawn = {
        "plans": pictures.plans(runs.plans, folder / "figures"),
        "filters": pictures.filters(found.design.runs, folder / "figures"),
    }
    told: dict[str, Any] = {
        "runs": runs, "found": found, "charts": titles, "drawn": drawn, "units": UNITS, "words": words,
        "scratch": SCRATCH, "random": RANDOM,
        "statuses": Counter(table.status), "troubled": table[table.status != "completed"].to_dict("records"),
        "seeds": sorted(found.design.runs.seed.unique()), "seconds": float(table.seconds.sum()),
        "accuracies": _accuracies(found), "axes": axes, "panels": figures.PANELS,
        "controls": list(dict.fromkeys(name for answer in found.answers for name in answer.picked)),
    }  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("layergraft.report", "templates"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=jinja2.select_autoescape(["html.j2"]),
    )  # fmt: skip
    environment.filters["estimate"] = lambda d, form="{:.1f}": "-" if d is None else form.format(d)
    write_atomic(folder / "report.md", environment.get_template("report.md.j2").render(told))
    page = environment.get_template("report.html.j2").render(
        **told,
        vega=figures.script(),
        specs=figures.in_page(charts),
        data_tables=_data_tables(),
        rows=figures.in_page(_rows(table)),
        levels={name: sorted(map(str, table[name].unique()), key=_naturally) for name in axes},
    )
    write_atomic(folder / "report.html", page)
    return folder / "report.html"


def _charts(
    found: Findings, axes: list[str], table: pd.DataFrame, folder: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Name -> specification, and name -> nothing but that it is there; PNG and SVG are written into `folder`."""
    over = {SCRATCH: "over scratch", RANDOM: "over a random frozen layer"}.get(found.baseline or "", "")
    drawn: dict[str, Any] = {}
    if found.contrasts:
        rows = pd.DataFrame(
            [{"contrast": c.name, "metric": UNITS.get(c.metric, c.metric), "difference": c.difference}
             for c in found.contrasts if c.difference is not None]
        )  # fmt: skip
        if len(rows):
            drawn["contrasts"] = figures.forest(rows, axes, "difference", "contrast", panel="metric")
    for metric, name in (("test/acc", "gain"), ("val/aulc", "speed")):
        if metric in found.gains and len(found.gains[metric]):
            drawn[name] = figures.heat_map(found.gains[metric], axes, f"{UNITS[metric]}, {over}")
    lines = curves(found.design)
    if len(lines):
        drawn["learning_curves"] = figures.learning_curves(lines, axes)
    if len(found.shocks):
        drawn["shock"] = figures.forest(
            found.shocks, axes, "points of validation accuracy at step 0, grafted less intact", "arm", "site"
        )
    by_run = found.by_run.merge(table[["key", "record"]], on="key").dropna(subset="gain")
    columns = ["key", "record", "arm", "setting", "gain", *axes]
    if "drift" in by_run and (by_run.drift > 0).any():
        drawn["drift"] = figures.scatter(
            by_run.dropna(subset="drift")[[*columns, "drift"]], axes, "drift", f"{UNITS['test/acc']}, {over}"
        )
    if found.shares is not None:
        drawn["shares"] = figures.share_bars(_share_rows(found))
    if len(found.ladder):
        drawn["ladder"] = figures.forest(
            found.ladder, axes, f"{UNITS['test/acc']}, {over}", "donor", "strategy", panel="place"
        )
    measures = measures_of(by_run)
    if measures:
        long = by_run.melt([*columns], measures, "measure", "value").dropna(subset="value")
        long["measure"] = long.measure.str.removeprefix("similarity/")
        drawn["similarity"] = figures.scatter(long, axes, "value", f"{UNITS['test/acc']}, {over}", panel="measure")
    return {name: figures.save(chart, folder, name) for name, chart in drawn.items()}, dict.fromkeys(drawn, "")


def _share_rows(found: Findings) -> pd.DataFrame:
    def term(factors: tuple[str, ...]) -> str:
        return " × ".join(factors) or "the rest: seed × factors, and noise"

    assert found.shares is not None
    return pd.DataFrame([
        {"term": term(s.factors), "raw": 100 * s.raw, "p": s.p,
         "low": None if np.isnan(s.low) else 100 * s.low, "high": None if np.isnan(s.high) else 100 * s.high,
         "interval": "" if np.isnan(s.low) else f"{100 * s.low:.1f} to {100 * s.high:.1f}"}
        for s in found.shares.terms
    ])  # fmt: skip


def _accuracies(found: Findings) -> list[dict[str, Any]]:
    grouped = found.design.runs.groupby(["setting", "arm", "site"], sort=False)["test/acc"]
    rows = grouped.agg(["mean", "std", "count"]).reset_index()
    return rows.sort_values(["setting", "arm"], kind="stable").to_dict("records")


def _rows(table: pd.DataFrame) -> dict[str, Any]:
    """The table of runs for the page: figures to 5 digits."""
    known = ["status", "error", "arm", "setting", "record"]
    metrics = [name for name in table if "/" in name or name in ("drift", "seconds")]
    swept = [name for name in table if name not in (*known, *metrics, *AXES, "key")]
    order = ["key", "status", *AXES, *swept, "test/acc", *(m for m in metrics if m != "test/acc"), "error", "record"]
    plain = table.reindex(columns=order).astype(object)
    data = [[_plain(value) for value in row] for row in plain.itertuples(index=False)]
    return {"columns": order, "data": data, "axes": [*AXES, *swept]}


def _plain(value: Any) -> Any:
    if value is pd.NA:
        return None
    if isinstance(value, (float, np.floating)):
        return None if not np.isfinite(value) else float(f"{value:.5g}")
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
    script = (files / "dt_bundle.js").read_bytes()
    return {"style": (files / "dt_bundle.css").read_text(), "module": base64.b64encode(script).decode()}
