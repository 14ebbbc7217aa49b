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


def compare(a: str, b: str, folders: Sequence[Path], metric: str = "test/acc", where: str | None = None) -> str:
    """What the runs that meet the condition `a` gain over those that meet `b`, in lines.

    Raises UserError for a condition that no run meets, a metric that is none, and where the two share no cell.
    """
    from layergraft.errors import counted
    from layergraft.report.contrasts import contrast, design
    from layergraft.report.findings import words
    from layergraft.report.table import read, require_completed

    runs = read(folders, where)
    require_completed(runs)
    found = contrast(design(runs), f"{a} less {b}", [f"+{a}", f"-{b}"], metric)
    lines = [f"{found.name}, {metric}: {words(found.difference)}"]
    if found.difference is not None:
        n, p = len(found.seeds), found.difference.p
        lines.append(
            f"{counted(n, 'seed')} ({', '.join(map(str, found.seeds))}), {counted(found.num_cells, 'cell')}, p = {p:.3g}"
        )
    if found.unpaired:
        lines.append(f"without a partner in every cell: {', '.join(map(str, found.unpaired))}")
    return "\n".join(lines)
