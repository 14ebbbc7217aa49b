"""Hydra's and OmegaConf's errors in one clear line each: the offender, what exists, what was meant."""

from __future__ import annotations

import dataclasses
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import MarkedYAMLError

from layergraft.config.registry import ONLY_IN_PYTHON, kind_of, names_of
from layergraft.config.renamed import renamed
from layergraft.errors import DISK_FULL, RunFailed, UserError, unknown

MAX_LINE = 4000
DEFAULTS_LISTS = ("hydra/_internal/defaults_list.py", "hydra/core/default_element.py")
# What Hydra says of a config that it cannot compose -> what to say instead.
COMPOSITION = {
    "override 'data@donor.data'": "donor.data: this donor learns from no data of its own; donor=trained and others do",
    r"^In '([^']+)'.*Key '\w+' not in '(?:OptunaConf|BasicSweeperConf)'": (
        r"\1 names controls and contrasts, which only hydra/sweeper=layergraft has (the default); "
        r"leave the experiment out and give another sweeper the keys themselves"
    ),
    r"^Could not override 'experiment'": "an experiment is added with a +: +experiment=quickstart",
    r"^Could not override 'size'": "a size goes with an experiment: +experiment=location size=digits",
    r"Ambiguous value for argument '(.+?)'": r"\1: several values are a sweep and need -m (layergraft train -m \1 ...)",
}


def explain(error: BaseException) -> str | None:
    """The line to print for `error`; None where it is not the user's doing and the traceback is due."""
    said = _said(error)
    return None if said is None else one_line(said)


def _raised_at(error: BaseException) -> tuple[str, str]:
    """The file and the function that raised it; empty where that is not known."""
    frames = traceback.extract_tb(error.__traceback__)
    return (frames[-1].filename, frames[-1].name) if frames else ("", "")


def one_line(text: str) -> str:
    """`text` without what a terminal obeys or breaks lines at, such as names in others' files may hold, and not endless."""
    text = " ".join(text.split("\n"))
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return shown if len(shown) <= MAX_LINE else f"{shown[:MAX_LINE]} ..."


def _said(error: BaseException) -> str | None:
    if isinstance(error, (UserError, RunFailed)):
        return str(error)
    if isinstance(error, MissingConfigException):
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        if not group:
            return _first_line(error)
        offered = [option for option in error.options or [] if option not in ONLY_IN_PYTHON.get(group, [])]
        return renamed(f"{group}={name}") or str(unknown(group, name, offered))
    if isinstance(error, OverrideParseException):
        if re.match(r"site=.*depth=", str(error.override)):
            return f"cannot read the override '{error.override}'; a relative depth is a number: site=0.5"
        return f"cannot read the override '{error.override}'; overrides are written KEY=VALUE, such as optim.lr=0.01; a text with '=' or ',' in it is quoted"
    if isinstance(error, ConfigCompositionException):
        for said, instead in COMPOSITION.items():
            if found := re.search(said, str(error), re.DOTALL):
                return found.expand(instead)
        if found := re.search(
            r"^In '([^']+)'.*Key '(\w+)' not in.*full_key: (\S+)", str(error), re.DOTALL
        ):  # a file's key
            said = renamed(found[3]) or f"unknown key '{found[2]}' ({found[3]})"
            return f"{found[1]}.yaml: {said}"
        cause = error.__cause__
        return _omegaconf(cause) if isinstance(cause, OmegaConfBaseException) else _first_line(error)
    if isinstance(error, OmegaConfBaseException):
        return _omegaconf(error)
    if isinstance(error, HydraException):
        return _first_line(error)
    at, function = _raised_at(error)
    if isinstance(error, AssertionError) and function == "configure_log" and at.endswith("hydra/core/utils.py"):
        return "hydra.verbose takes true, false, the name of a logger or a list of names"
    of_a_group = isinstance(error, (TypeError, AssertionError)) or str(error).startswith("Config group override")
    if of_a_group and at.endswith(DEFAULTS_LISTS):  # Hydra's, without the key; of what is no name it checks for little
        return "a group takes the name of a choice, such as optim=adam, and no number, list or dictionary"
    key = getattr(error, "full_key", None)
    if isinstance(key, str):  # OmegaConf has told its key to an error of other code
        is_null = isinstance(error, AttributeError) and "'NoneType'" in str(error)
        return f"{key}: {'it is null, and cannot be set as a whole' if is_null else _first_line(error)}"
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark
        return f"{f'{mark.name}, line {mark.line + 1}: ' if mark else ''}{error.problem}"
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


def _omegaconf(error: OmegaConfBaseException) -> str:
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)):
        if old := renamed(error.full_key or str(error.key)):
            return old
        parent, _, key = (error.full_key or str(error.key)).rpartition(".")
        if parent and error.object_type in (dict, None, Any):
            return f"{parent} has no {key}; +{parent}.{key}=VALUE adds it"
        known = _keys_of(error) if parent else [*_keys_of(error), "hydra/launcher", "hydra/sweeper"]
        others = [
            name for name in names_of(parent) if key in {f.name for f in dataclasses.fields(kind_of(parent, name))}
        ]
        if others:
            return f"{parent}.{key} is a key of {' and '.join(f'{parent}={name}' for name in others)}, not of the {parent} chosen"
        return str(unknown(f"key{f' in {parent}:' if parent else ''}", key, known))
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
        if kind == "pretrain":
            return f"host.pretrain is a group of keys, not a name; host.pretrain.data={group[2]} chooses the data set"
        return f"{error.full_key} is a group of keys, not a name; {kind}@{error.full_key}={group[2]} chooses one"
    where = f"{error.full_key}: " if error.full_key and error.full_key not in message else ""
    return f"{where}{message}"


def _keys_of(error: OmegaConfBaseException) -> list[str]:
    if dataclasses.is_dataclass(error.object_type):
        return [field.name for field in dataclasses.fields(error.object_type)]
    return [str(key) for key in error.parent_node or []]
