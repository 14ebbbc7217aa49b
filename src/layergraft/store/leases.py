"""Leases: one process at a time is at something, on one machine or on several that share a disk.

A lease is a file `MARKER~N`, which is created exclusively and then renewed. That, and reading a folder, is all that is asked
of the disk: network file systems have locks that do not hold between machines, and refuse to exchange two names, which is how
filelock takes a dead owner's lease over. Who finds a lease whose owner is dead makes the one with the next number, looks
again, and withdraws if anybody else is there: of two that take over at once, both or one withdraw, and try again.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEASE_SECONDS = 60.0  # longer than NFS keeps what it knows of a file
POLL_SECONDS = 0.2


class LeaseHeld(Exception):
    """Another process, here or on another machine, is at it."""


@contextmanager
def lease(marker: Path, wait: bool = True) -> Iterator[Callable[[], bool]]:
    """Be the only one at what `marker` stands for; what is yielded tells whether that still holds.

    A lease whose owner has died is taken over, at once on the same machine, after `LEASE_SECONDS` without a renewal on
    another. An owner that was stopped for longer loses its lease, and must not commit what it has done. Raises LeaseHeld
    where another has it, unless it is to be waited for."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    watched: dict[tuple[str, str, int], float] = {}
    content = f"{_machine()} {os.getpid()} {_started(os.getpid())} {uuid.uuid4().hex}"
    while (path := _taken(marker, content, watched)) is None:
        if not wait:
            raise LeaseHeld(f"another process is at {marker.name}")
        time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))

    def ours() -> bool:
        with suppress(OSError):
            return path.read_text() == content
        return False

    stop = threading.Event()
    threading.Thread(target=_renew, args=(path, stop), daemon=True).start()
    try:
        yield ours
    finally:
        stop.set()
        if ours():
            path.unlink(missing_ok=True)


def leased(folder: Path, now: float) -> set[str]:
    """The names of the markers in `folder` that somebody has renewed of late, of the disk's clock, which says `now`."""
    names = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # released meanwhile
            if now - path.stat().st_mtime < LEASE_SECONDS:
                names.add(path.name.rpartition("~")[0])
    return names


def _taken(marker: Path, content: str, watched: dict[tuple[str, str, int], float]) -> Path | None:
    """The lease, made; None where somebody else has it or wants it too."""
    dead = _others(marker)
    if any(_is_alive(*other, watched) for other in dead):
        return None
    number = max((int(name.rpartition("~")[2]) for name, _, _ in dead), default=0) + 1
    path = marker.with_name(f"{marker.name}~{number}")
    try:
        with open(path, "x") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return None
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    judged = {(name, text) for name, text, _ in dead}
    if any((name, text) not in judged for name, text, _ in _others(marker) if name != path.name):
        path.unlink(missing_ok=True)
        return None
    for name, _, _ in dead:
        marker.with_name(name).unlink(missing_ok=True)
    return path


def _others(marker: Path) -> list[tuple[str, str, int]]:
    """Name, content and time of the last renewal of each lease that is there."""
    found = []
    for name in (name for name in os.listdir(marker.parent) if name.rpartition("~")[0] == marker.name):
        with suppress(FileNotFoundError), open(marker.with_name(name)) as file:  # opened, so that NFS asks its server
            found.append((name, file.read(), os.fstat(file.fileno()).st_mtime_ns))
    return found


def _is_alive(name: str, content: str, renewed: int, watched: dict[tuple[str, str, int], float]) -> bool:
    machine, *rest = content.split(" ")
    if machine == _machine() and len(rest) == 3:
        pid, started, _ = rest
        return started == _started(int(pid))
    now = time.monotonic()  # another machine's clock says nothing here
    return now - watched.setdefault((name, content, renewed), now) < LEASE_SECONDS


def _renew(path: Path, stop: threading.Event) -> None:
    while not stop.wait(LEASE_SECONDS / 4):
        with suppress(OSError):  # it may pass; if it does not, the lease runs out
            os.utime(path)


def _machine() -> str:
    """This machine since it was started, and the container: process numbers mean the same within."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return f"{socket.gethostname()}/{os.getpid()}"


def _started(pid: int) -> str:
    """When the process was started, so that another with its number is not taken for it; '-' where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "-" if Path("/proc/self").exists() else "?"
    return "-" if fields[0] == "Z" else fields[19]
