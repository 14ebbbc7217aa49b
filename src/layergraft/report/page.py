"""The report's page: one self-contained HTML file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from layergraft import timeline
from layergraft.files import label, write_atomic
from layergraft.report import contrasts, figures
from layergraft.report.table import read_records, tidy
from layergraft.store import read_sweep, run_folder

UNITS = {"test/acc": "points of test accuracy", "val/aulc": "points of mean validation accuracy over training"}


def write_page(folder: Path) -> Path:
    plan, records = read_sweep(folder), read_records(folder)
    runs = contrasts.with_arms(tidy(records))
    write_atomic(folder / "runs.csv", runs.to_csv(index=False))
    outputs = folder.resolve().parents[1]
    curves = {key: pd.read_csv(run_folder(outputs, key) / "curves.csv") for key in runs.key}
    sites = contrasts.sites_of(runs)
    scopes = ({"all sites": sites} if len(sites) > 1 else {}) | {site: [site] for site in sites}
    compared = {
        metric: {scope: contrasts.compare(runs, metric, there) for scope, there in scopes.items()} for metric in UNITS
    }
    drawn = {"learning": figures.save(figures.learning_curves(runs, curves), folder / "figures", "learning_curves")}
    for metric, unit in UNITS.items():
        tables = contrasts.against(runs, metric, contrasts.SCRATCH)
        if any(d is not None for table in tables.values() for d in table.to_numpy().ravel()):
            figure = figures.heat_maps(tables, unit)
            drawn[metric] = figures.save(figure, folder / "figures", f"against_scratch_{metric.replace('/', '_')}")
    plans = _plans(records, folder)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("layergraft.report", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    page = environment.get_template("report.html.j2").render(
        plan=plan,
        units=UNITS,
        compared=compared,
        figures=drawn,
        plans=plans,
        accuracies=_accuracies(runs),
        statuses=Counter(record["status"] for record in records),
        troubled=[record for record in records if record["status"] != "completed"],
        seeds=sorted(runs.seed.unique()),
        num_cells=len(runs[runs.site != "-"].groupby(["setting", "site"])),
        hardware=_distinct(records, "environment"),
        seconds=sum(r["timings"]["total_seconds"] for r in records if "timings" in r),
    )
    write_atomic(folder / "report.html", page)
    return folder / "report.html"


def _plans(records: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    """Strategy -> its plan over the epochs, drawn, with the host and site of the run that it is of."""
    drawn: dict[str, str] = {}
    for record in records:
        axes = record.get("axes", {})
        if record["status"] == "completed" and axes["strategy"] not in [title.split(",")[0] for title in drawn]:
            where = "" if axes["site"] == "-" else f", donor at {axes['site']}"
            name = label("plan", axes["strategy"])
            figure = timeline.figure(record["plan"])
            drawn[f"{axes['strategy']}, {axes['host']}{where}"] = figures.save(figure, folder / "figures", name)
    return drawn


def _accuracies(runs: pd.DataFrame) -> list[dict[str, Any]]:
    rows = runs.groupby(["setting", "arm", "site"], sort=False)["test/acc"].agg(["mean", "std", "count"]).reset_index()
    return rows.sort_values(["setting", "arm"], kind="stable").to_dict("records")


def _distinct(records: list[dict[str, Any]], field: str) -> list[str]:
    texts = []
    for record in records:
        if field in record:
            e = record[field]
            packages = ", ".join(f"{name} {number}" for name, number in e["packages"].items())
            texts.append(
                f"{e['device']}, {e['precision']}, {e['threads']} thread(s) a run; {e['system']}, Python {e['python']}, {packages}"
            )
    return list(dict.fromkeys(texts))
