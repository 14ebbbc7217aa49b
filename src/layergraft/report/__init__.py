"""Reports: from the records of runs to tables, figures and a page. Imports no torch, so that it starts at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write(folders: Sequence[Path], where: str | None = None, to: Path | None = None) -> Path:
    """Write report.html, report.md, runs.csv, runs.parquet and figures/; the page's path.

    `folders` are sweeps', or of runs such as outputs/runs; `where` keeps the runs that meet it. All goes `to` a folder: by
    default the sweep's own where there is one sweep and no `where`, else one below outputs/reports. Raises UserError for
    what is no such folder, and where nothing was completed.
    """
    from layergraft.report.page import write_report
    from layergraft.report.table import read, target

    runs = read(folders, where)
    return write_report(runs, to or target(folders, where))


def compare(
    a: str,
    b: str,
    folders: Sequence[Path],
    metric: str = "test/acc",
    where: str | None = None,
    margin: float | None = None,
) -> str:
    """What the runs that meet the condition `a` gain over those that meet `b`, in lines; with a `margin`, in the unit of the
    metric, whether the two are equivalent within it.

    Raises UserError for a condition that no run meets, a metric that none of them has, a margin that is not above 0, and where
    the two share no cell.
    """
    from layergraft.errors import counted, listing
    from layergraft.report.contrasts import contrast, design
    from layergraft.report.narrative import describe_difference, describe_metric
    from layergraft.report.query import columns_of
    from layergraft.report.table import read, require_completed

    for condition in (a, b):
        columns_of(condition)  # a malformed condition is refused before anything is read
    runs = read(folders, where, [metric])
    require_completed(runs)
    found = contrast(design(runs), f"{a} less {b}", [f"+{a}", f"-{b}"], metric, margin)
    lines = [f"{found.name}, {describe_metric(metric, runs.units)}: {describe_difference(found.difference, metric)}"]
    if found.difference is not None:
        seeds = f"{counted(len(found.seeds), 'seed')} ({', '.join(map(str, found.seeds))})"
        equivalence = "" if margin is None else f", p of equivalence = {found.difference.equivalence_p:.3g}"
        lines.append(f"{seeds}, {counted(found.num_cells, 'cell')}, p = {found.difference.p:.3g}{equivalence}")
    if found.never:
        lines.append(f"{counted(found.never, 'run')} never reached it and count as all their steps")
    if found.unpaired:
        lines.append(f"seeds that lack a cell: {', '.join(map(str, found.unpaired))}")
    if found.left_out:
        lines.append(f"left out, as not both or not most seeds have it: {listing(found.left_out)}")
    lines += runs.notes
    others = runs.table.status[runs.table.status != "completed"].value_counts()
    return "\n".join([*lines, *(f"not counted, as {status}: {counted(n, 'run')}" for status, n in others.items())])
