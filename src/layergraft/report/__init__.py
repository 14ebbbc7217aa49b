"""Reports: from the records of a sweep to tables, figures and a page. Imports no torch, so that it starts at once."""

from __future__ import annotations

from pathlib import Path


def write(folder: Path) -> Path:
    """Write report.html, runs.csv and figures/ into a sweep's folder; the page's path.

    Raises UserError where the folder is no sweep's or none of its runs was completed.
    """
    from layergraft.report.page import write_page

    return write_page(folder)
