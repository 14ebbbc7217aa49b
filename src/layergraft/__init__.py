"""layergraft: load a layer trained on its own into a multi-layer ResNet, and measure what that does."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layergraft.api import Data, Donor, Host, Run, Strategy, Surgery, fit, graft, load_runs
    from layergraft.errors import RunFailed, UserError

__all__ = ["Data", "Donor", "Host", "Run", "RunFailed", "Strategy", "Surgery", "UserError", "fit", "graft", "load_runs"]


def __getattr__(name: str) -> object:
    """Names are looked up when they are used: the command line starts without the rest."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("layergraft")
        except PackageNotFoundError:
            return "0+source"  # a source tree on the path, not installed
    if name not in __all__:
        raise AttributeError(f"module 'layergraft' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module("layergraft.errors" if name in ("RunFailed", "UserError") else "layergraft.api"), name)


def __dir__() -> list[str]:
    return __all__
