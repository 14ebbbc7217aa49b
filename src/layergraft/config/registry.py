"""What all specs share: where they are registered, how their values are checked, their canonical form."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from layergraft.errors import UserError, require, unknown

Kind = TypeVar("Kind")
# Of what is made so large, or so many times: more is a slip of the finger, that would take all memory or never end.
MAXIMA = {
    "epochs": 100_000, "width": 65_536, "in_channels": 65_536, "out_channels": 65_536, "kernel_size": 1024, "stride": 1024,
    "padding": 1024, "aux_depth": 100, "shift": 1024, "size": 16_384, "num_classes": 100_000, "per_class": 1_000_000,
    "resamples": 10_000, "threads": 1024, "workers": 1024, "reader_threads": 1024, "devices": 1024, "jobs_per_gpu": 1024,
}  # fmt: skip
LARGEST = 2**63 - 1
PATHS = ("path", "root", "cache", "weights", "outputs", "data", "resume")  # which may have any name that a disk takes
PLAIN = {str, int, float, bool, type(None)}
ONLY_IN_PYTHON = {"host": ["module"]}  # choices of a group that the command line cannot have, and does not offer
_KINDS: dict[tuple[str, str], type[Any]] = {}


def bounded(default: Any, interval: str, said: str = "") -> Any:
    """A dataclass's field for a number in `interval`, such as [0, 1); where `default` is a function, which makes it,
    for a list or a dictionary of such numbers. `said` ends the message for others."""
    low, high = map(float, interval[1:-1].split(","))
    said = said or f"it must be {f'{low:g} or more' if high == math.inf else f'in {interval}'}"

    def holds(number: Any) -> bool:
        if number is None:
            return default is None
        above = number > low if interval[0] == "(" else number >= low
        return bool(above and (number < high if interval[-1] == ")" else number <= high))

    def check(path: str, value: Any) -> None:
        each = [(f"{path} is", value)]
        if callable(default):
            is_dict = isinstance(value, dict)
            each = [(f"{path}.{k} is", v) for k, v in value.items()] if is_dict else [(f"{path} has", v) for v in value]
        for at, number in each:
            require(holds(number), f"{at} {number}; {said}")

    return _checked_field(default, check)


def one_of(default: Any, known: Iterable[Any] | Callable[[], Iterable[Any]], said: str = "") -> Any:
    """A dataclass's field for one of `known`, or of what that gives when a value is checked; `said` ends the message for
    others, in place of what there is."""

    def check(path: str, value: Any) -> None:
        there = [*(known() if callable(known) else known)]
        if value not in there and not (value is None and default is None):
            raise UserError(f"{path} is {value}; {said}") if said else unknown(path, value, there)

    return _checked_field(default, check)


def _checked_field(default: Any, check: Callable[[str, Any], None]) -> Any:
    """A field that `validate` has `check` look at, told its key and its value."""
    if callable(default):
        return field(default_factory=default, metadata={"check": check})
    return field(default=default, metadata={"check": check})


def register(group: str, name: str) -> Callable[[type[Kind]], type[Kind]]:
    """Class decorator: `conf/GROUP/NAME.yaml` may start from this dataclass as `/schema/GROUP@_here_: NAME`."""

    def store(cls: type[Kind]) -> type[Kind]:
        _KINDS[group, name] = cls
        ConfigStore.instance().store(group=f"schema/{group}", name=name, node=cls, provider="layergraft")
        return cls

    return store


def kind_of(group: str, name: str) -> type[Any]:
    """The dataclass that is registered so. Raises UserError where none is."""
    if (group, name) not in _KINDS:
        raise unknown(f"kind of {group}", name, names_of(group))
    return _KINDS[group, name]


def names_of(group: str) -> list[str]:
    """List the names that dataclasses are registered by under `group`."""
    return [name for of, name in _KINDS if of == group]


def name_of(spec: Any) -> str:
    """The name that the dataclass of `spec` is registered by. Raises UserError where it is not."""
    found = [name for (_, name), kind in _KINDS.items() if kind is type(spec)]
    require(bool(found), f"the class {type(spec).__name__} is not registered; config.registry.register does it")
    return found[0]


def from_canonical(group: str, name: str, fields: dict[str, Any]) -> Any:
    """The inverse of `canonical`, for a spec without specs in it. Raises UserError if the kind is gone, or changed."""
    kind = kind_of(group, name)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), fields))
    except OmegaConfBaseException as error:
        raise UserError(f"the {group} {name} has other keys now: {str(error).splitlines()[0]}") from None


def validate(spec: Any, at: str = "") -> None:
    """Check the values of each dataclass in `spec`: their shape and size, what its fields are checked for, and last what it
    checks itself, told its key for the message. Raises UserError."""
    kind: type = type(spec)
    for key, shape in _shapes(kind).items():
        value, path = getattr(spec, key), f"{at}.{key}" if at else key
        require(value != MISSING, f"{path} is not set; `layergraft train --cfg job` shows all keys")
        if shape is not None and not isinstance(value, shape):  # OmegaConf lets an interpolation give anything
            raise UserError(f"{path} is {value!r}; a {shape.__name__} is needed")
        if type(value) is int:
            most = MAXIMA.get(key, LARGEST)
            require(abs(value) <= most, f"{path} is {value}; {most} is the most that is taken")
        if key not in PATHS:
            for text in value if isinstance(value, (list, dict)) else [value]:
                is_shown = not isinstance(text, str) or text.isprintable()
                require(is_shown, f"{path} has a character that cannot be shown: {text!r}")
        for name, part in value.items() if isinstance(value, dict) else [(None, value)]:
            if dataclasses.is_dataclass(part):
                validate(part, path if name is None else f"{path}.{name}")
    for key, check in _checks(kind).items():
        check(f"{at}.{key}" if at else key, getattr(spec, key))
    if hasattr(spec, "check"):
        spec.check(at)


def canonical(spec: Any) -> Any:
    """A spec as plain JSON data: dataclass fields in order, enums by name, numbers of the fields' own types. The kind
    of a spec is kept in its `name`, dictionaries keep their order (groups and phases are ordered)."""
    kind: type = type(spec)
    if kind in PLAIN:
        return spec
    if dataclasses.is_dataclass(spec):
        return {name: canonical(getattr(spec, name)) for name in _names(kind)}
    if isinstance(spec, Enum):
        return spec.name
    if isinstance(spec, dict):
        return {key: canonical(value) for key, value in spec.items()}
    if isinstance(spec, (list, tuple)):
        return [canonical(value) for value in spec]
    return spec


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(item.name for item in dataclasses.fields(kind))


@cache
def _shapes(kind: type) -> dict[str, type | None]:
    """Field -> dict or list where it is always one."""
    known: dict[str, type] = {"dict": dict, "list": list}
    told = {item.name: str(item.type) for item in dataclasses.fields(kind)}
    return {name: None if "None" in text else known.get(text.partition("[")[0]) for name, text in told.items()}


@cache
def _checks(kind: type) -> dict[str, Callable[[str, Any], None]]:
    """Field -> what checks its value. A subclass that gives a field another default keeps the check."""
    bases = [base for base in reversed(kind.__mro__) if dataclasses.is_dataclass(base)]
    fields = [item for base in bases for item in dataclasses.fields(base)]
    return {item.name: item.metadata["check"] for item in fields if "check" in item.metadata}


@dataclass(frozen=True)
class Hashable:
    """A spec that caches can tell from others by its content."""

    key: str
    spec: Any = field(compare=False)


def hashable(spec: Any) -> Hashable:
    return Hashable(f"{type(spec).__name__} {json.dumps(canonical(spec))}", spec)
