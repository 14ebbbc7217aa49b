"""Errors that a user can mend: one line that names the offender, lists what exists, guesses what was meant."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

MAX_LISTED = 40
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(ValueError):
    """Bad input. Its message is one clear line; the command line prints it without a traceback."""


class RunFailed(RuntimeError):
    """A run that ended as failed or diverged; its record has the traceback."""


def listing(names: Iterable[object]) -> str:
    """`a, b, c`, cut after `MAX_LISTED` names with a count of the rest."""
    words = [str(name) for name in names]
    rest = len(words) - MAX_LISTED
    return ", ".join(words[:MAX_LISTED]) + (f", ... ({rest} more)" if rest > 0 else "")


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def unknown(what: str, name: object, known: Iterable[object]) -> UserError:
    """The error for a `name` that is not among `known`; `what` says what it should have named."""
    there = [str(item) for item in known]
    close = difflib.get_close_matches(str(name), there, n=1, cutoff=0.5)
    guess = f"; did you mean '{close[0]}'?" if close else "."
    return UserError(f"unknown {what} '{name}'{guess} There are: {listing(there) or 'none'}")


def require(holds: bool, message: str) -> None:
    """Raise `UserError(message)` unless `holds`."""
    if not holds:
        raise UserError(message)
