"""Files that are there whole or not at all, and the hashes that name them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layergraft.errors import UserError
from layergraft.store.leases import lease


def digest(value: Any) -> str:
    """Twelve hex digits of SHA-256 over `value`: bytes as they are, anything else as JSON. JSON keeps the order of
    dictionaries (the groups of a strategy are ordered) and writes floats so that they read back the same."""
    data = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    return hashlib.sha256(data).hexdigest()[:12]


def label(*parts: object) -> str:
    """The readable part of a folder's name: `parts` joined by dots, all but letters, digits, '-', '_' and '.' made '-', and a dot
    at the start, which would hide it."""
    return re.sub(r"[^\w.-]|^\.", "-", ".".join(str(part) for part in parts))


def modified(path: Path) -> float:
    """Return when `path` was last written, of the disk's clock; 0.0 where there is no such file."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def machine_memory() -> int:
    """Bytes of this machine's memory, used or free."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_regular(path: str | Path, what: str) -> None:
    """Raise UserError for what is no plain file: a folder, a pipe or a device, which would be waited for without end."""
    file = Path(path)
    if file.exists() and not file.is_file():
        raise UserError(f"{path} is {'a folder' if file.is_dir() else 'no plain file'}; {what} is needed")


def unpacked(path: str | Path) -> int | None:
    """Bytes that the ZIP archive at `path` says it unpacks to, and no reader goes beyond; None for another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except Exception:  # a damaged one can make it raise nearly anything; whoever reads it says what is wrong
        return None


def require_unpacked(path: str | Path) -> None:
    """Raise UserError for an archive that unpacks to far more than it is: torch keeps tensors as they are in one."""
    size, whole = Path(path).stat().st_size, unpacked(path)
    if whole is not None and whole > 10 * size + 2**20:
        raise UserError(f"{path} is refused: its {size:,} bytes unpack to {whole:,}, which torch's own files do not do")


def write_atomic(path: Path, text: str | bytes) -> None:
    """Write `path` so that a reader, or a crash, finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes 0600, which shuts colleagues on a shared disk out
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def create_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Have `folder` there, whole: `make` fills another, which is then moved to its place. One process does it."""
    if folder.exists():
        return
    with lease(_marker_of(folder)):
        if folder.exists():
            return
        for left in folder.parent.glob(f".{folder.name}.*.unfinished"):  # by one that was killed
            shutil.rmtree(left, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".unfinished"))
        try:
            make(unfinished)
            os.chmod(unfinished, 0o755)  # mkdtemp makes 0700
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)  # gone already where it was moved


def discard(folder: Path, older_than: float) -> None:
    """Remove what `create_once` has made, where that was before `older_than` (of the disk's clock)."""
    with lease(_marker_of(folder)):
        if folder.exists() and folder.stat().st_mtime < older_than:
            aside = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
            os.replace(folder, aside)  # all of it at once
            shutil.rmtree(aside)


def _marker_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lease")


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
