"""Hosts, donors, data sets, surgery operations, metrics, sites and choices that other installed packages add: those with an entry point of the group
`layergraft`, which names a module. It is imported before a config is composed, and the folder `conf/` beside it, laid out like
layergraft's own, is searched for choices after that. How: docs/extend.md."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from layergraft.errors import UserError

# Whose modules register layergraft's own kinds and metrics.
OWN = ("layergraft.data", "layergraft.hosts", "layergraft.donors", "layergraft.surgery", "layergraft.metrics")


@cache
def installed() -> dict[str, Path | None]:
    """Each such package, imported after layergraft's own kinds: name -> folder of choices or None. Raises UserError."""
    for name in OWN:
        import_module(name)
    folders = {}
    for point in entry_points(group="layergraft"):
        name = point.dist.name if point.dist else point.name
        try:
            file = point.load().__file__
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"the package {name}, which adds to layergraft, cannot be imported: {why}") from error
        conf = Path(file).parent / "conf" if file else None
        folders[name] = conf if conf and conf.is_dir() else None
    return folders
