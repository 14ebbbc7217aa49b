"""Hydra's and OmegaConf's errors in one clear line each: the offender, what exists, what was meant."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import MarkedYAMLError

from layergraft.errors import DISK_FULL, RunFailed, UserError, unknown

MAX_LINE = 4000
UNKNOWN_KEY = (ConfigAttributeError, ConfigKeyError)


def explain(error: BaseException) -> str | None:
    """The line to print for `error`; None where it is not the user's doing and the traceback is due."""
    said = _said(error)
    return None if said is None else one_line(said)


def one_line(text: str) -> str:
    """`text` without what a terminal obeys or breaks lines at, such as names in others' files may hold, and not endless."""
    text = " ".join(text.split("\n"))
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return shown if len(shown) <= MAX_LINE else f"{shown[:MAX_LINE]} ..."


def _said(error: BaseException) -> str | None:
    if isinstance(error, (UserError, RunFailed)):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, OverrideParseException):
        if re.match(r"site=.*depth=", str(error.override)):
            return f"cannot read the override '{error.override}'; a relative depth is a number: site=0.5"
        return f"cannot read the override '{error.override}'; overrides are written KEY=VALUE, such as optim.lr=0.01; a text with '=' or ',' in it is quoted"
    if isinstance(error, ConfigCompositionException):
        return _composition(error)
    if isinstance(error, OmegaConfBaseException):
        return _omegaconf(error)
    if isinstance(error, HydraException):
        return _first_line(error)
    if isinstance(error, ValueError) and str(error).startswith("Config group override"):  # Hydra's, without the key
        return "a group takes the name of a choice, such as optim=adam, and no number, list or dictionary"
    key = getattr(error, "full_key", None)
    if isinstance(key, str):  # OmegaConf has told its key to an error of other code
        is_null = isinstance(error, AttributeError) and "'NoneType'" in str(error)
        return f"{key}: {'it is null, and cannot be set as a whole' if is_null else _first_line(error)}"
    if isinstance(error, MarkedYAMLError):
        return _yaml(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"the disk is full: {error}; what is in the store stays, the same command goes on"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return None


@contextmanager
def of_the_run(overrides: Sequence[str]) -> Iterator[None]:
    """What can be explained is raised as UserError with the overrides of the run that it is about."""
    try:
        yield
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        raise UserError(f"{line} [in the run {' '.join(overrides)}]") from error


def _first_line(error: BaseException) -> str:
    """Of the message; the second too, where the first only announces it."""
    first, *rest = str(error).strip().splitlines()
    return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first


def _missing_choice(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return _first_line(error)
    return str(unknown(group, name, error.options or []))


def _composition(error: ConfigCompositionException) -> str:
    cause = error.__cause__
    if "Could not override 'data@donor.data'" in str(error):
        return "donor.data: this donor learns from no data of its own; donor=trained and others do"
    experiment = re.match(r"In '([^']+)'.*Key '\w+' not in '(\w+Conf)'", _first_line(error), re.DOTALL)
    if experiment and experiment[2] in ("OptunaConf", "BasicSweeperConf"):
        return (
            f"{experiment[1]} names controls and contrasts, which only hydra/sweeper=layergraft has (the default); "
            "leave the experiment out and give another sweeper the keys themselves"
        )
    added = re.match(r"Could not override '(experiment|size)'", str(error))
    if added:
        return (
            "an experiment is added with a +: +experiment=quickstart"
            if added[1] == "experiment"
            else "a size goes with an experiment: +experiment=location size=digits"
        )
    several = re.match(r"Ambiguous value for argument '([^']+)'", str(error))
    if several:
        return f"{several[1]}: several values are a sweep and need -m (layergraft train -m {several[1]} ...)"
    if isinstance(cause, UNKNOWN_KEY):
        return _unknown_key(cause)
    if isinstance(cause, OmegaConfBaseException):
        return _omegaconf(cause)
    return _first_line(error)


def _yaml(error: MarkedYAMLError) -> str:
    mark = error.problem_mark
    where = f"{mark.name}, line {mark.line + 1}: " if mark else ""
    return f"{where}{error.problem}"


def _omegaconf(error: OmegaConfBaseException) -> str:
    if isinstance(error, UNKNOWN_KEY):
        return _unknown_key(error)
    if isinstance(error, MissingMandatoryValue):
        if error.full_key in ("donor.host", "donor.data"):
            return f"{error.full_key} is not set whole; +{error.full_key[6:]}@{error.full_key}=NAME chooses one"
        return f"{error.full_key} is not set; give {error.full_key}=VALUE"
    message = _first_line(error)
    choice = re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", message)
    if choice:
        return str(unknown(error.full_key or "value", choice[1], choice[2].split(", ")))
    if re.search(r"is not a ListConfig|type hint 'typing.List", message):
        return f"{error.full_key or 'a value'}: a list is needed, such as [A,B]; {message}"
    group = re.match(r"Invalid type assigned: str is not a subclass of (\w+)Spec. value: (.*)", message)
    if group and error.full_key:
        kind = group[1].lower()
        return f"{error.full_key} is a group of keys, not a name; {kind}@{error.full_key}={group[2]} chooses one"
    where = f"{error.full_key}: " if error.full_key and error.full_key not in message else ""
    return f"{where}{message}"


def _unknown_key(error: OmegaConfBaseException) -> str:
    parent, _, key = (error.full_key or str(error.key)).rpartition(".")
    known = _keys_of(error) if parent else [*_keys_of(error), "hydra/launcher", "hydra/sweeper"]
    return str(unknown(f"key{f' in {parent}:' if parent else ''}", key, known))


def _keys_of(error: OmegaConfBaseException) -> list[str]:
    if dataclasses.is_dataclass(error.object_type):
        return [field.name for field in dataclasses.fields(error.object_type)]
    return [str(key) for key in error.parent_node or []]
