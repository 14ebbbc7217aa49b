"""What a sweep was planned to be, kept beside it: started again, it need not be planned again. Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

import layergraft
from layergraft.config.registry import canonical
from layergraft.store.files import digest, write_atomic, write_json
from layergraft.store.records import is_done, run_folder
from layergraft.store.sweep_folder import RERUN, SWEEP, read_sweep, rerun_since

if TYPE_CHECKING:
    from layergraft.runs.plan import RunPlan

FILES = ("root", "path", "labels", "weights")  # the keys of data sets, donors and hosts that name files
PACKAGES = ("torch", "torchvision", "scikit-learn", "numpy")


def write_plan(
    folder: Path,
    plans: Sequence[RunPlan],
    command: str,
    signed: str = "",
    rerun: bool = False,
    contrasts: Any = None,
    tuned: dict[str, str] | None = None,
    precision: dict[str, Any] | None = None,
    open_ended: bool = False,
) -> float:
    """Write what the sweep is to `folder`/sweep.json: command, what is to be compared, runs, what they come of. `tuned`: the key of
    each run -> its arm in tuning.json; empty while arms are being tuned. `precision`: what seeds were added to contrasts for.
    `open_ended`: more runs will follow. Return since when, of the disk's clock, a record counts:
    ever, or since this `rerun` (or the same, not concluded) began."""
    files = sorted({path for plan in plans for path in _paths(canonical(plan.config)) if os.path.exists(path)})
    keys = [plan.key for plan in plans]
    made_of = {"signature": signed, "files": files, "stamp": _stamp_of(files)}
    known = {"name": folder.name, "command": command, "contrasts": contrasts or {}, **made_of, "runs": keys}
    more = {"tuned": tuned, "precision": precision, "open_ended": open_ended or None}
    write_json(folder / SWEEP, known | {name: value for name, value in more.items() if value is not None})
    marker, content = folder / RERUN, digest([signed, made_of["stamp"]])
    if not rerun:
        marker.unlink(missing_ok=True)
    else:
        with suppress(FileNotFoundError):  # another process concludes it
            if marker.read_text() == content:
                return rerun_since(folder)
        write_atomic(marker, content)
    return rerun_since(folder)


def finished(folder: Path, outputs: Path, signed: str) -> list[str] | None:
    """The keys of the sweep's runs where it is the one that `folder` has, of the same files, and all of it is done."""
    if not (folder / SWEEP).exists():
        return None
    known = read_sweep(folder)
    if known.get("open_ended") or known.get("signature") != signed or known["stamp"] != _stamp_of(known["files"]):
        return None
    return known["runs"] if all(is_done(run_folder(outputs, key)) for key in known["runs"]) else None


def signature(combinations: Iterable[Sequence[str]], master: DictConfig, config_folders: Iterable[Path]) -> str:
    """Of all that the configs of the combinations (overrides), and what is made of them, come of: less the files of data."""
    stamps = [_stamp(folder) for folder in (Path(layergraft.__file__).parent, *config_folders)]
    machine = [sys.version, *map(version, PACKAGES), *_gpus()]
    return digest([[list(combination) for combination in combinations], OmegaConf.to_yaml(master), machine, stamps])


def _stamp_of(paths: Iterable[str]) -> str:
    return digest([_stamp(Path(path)) for path in paths if os.path.exists(path)])


def _stamp(path: Path) -> list[tuple[str, int, int]]:
    """Return path, size and time of the file, or of all that are in the folder."""
    inside = ((at, name) for at, _, names in sorted(os.walk(path)) for name in sorted(names) if name[-4:] != ".pyc")
    files = [path] if path.is_file() else [Path(at) / name for at, name in inside]
    return [(str(file), (status := file.stat()).st_size, status.st_mtime_ns) for file in files]


def _gpus() -> list[str]:
    """What decides, without asking torch, whether it will see a GPU."""
    return sorted(map(str, Path("/dev").glob("nvidia[0-9]*"))) + [os.environ.get("CUDA_VISIBLE_DEVICES", "-")]


def _paths(plain: dict[str, Any]) -> Iterable[str]:
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from _paths(value)
        elif name in FILES and isinstance(value, str):
            yield value
