"""What all specs share: where they are registered, how their values are checked, their canonical form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from layergraft.errors import require

Kind = TypeVar("Kind")
PLAIN = {str, int, float, bool, type(None)}


def register(group: str, name: str) -> Callable[[type[Kind]], type[Kind]]:
    """Class decorator: `conf/GROUP/NAME.yaml` may start from this dataclass as `/schema/GROUP@_here_: NAME`."""

    def store(cls: type[Kind]) -> type[Kind]:
        ConfigStore.instance().store(group=f"schema/{group}", name=name, node=cls, provider="layergraft")
        return cls

    return store


def validate(spec: Any, at: str = "") -> None:
    """Have each dataclass in `spec` check its own values, told its key for the message. Raises UserError."""
    kind: type = type(spec)
    for key in _names(kind):
        value, path = getattr(spec, key), f"{at}.{key}" if at else key
        require(value != MISSING, f"{path} is not set; `layergraft train --cfg job` shows all keys")
        for name, part in value.items() if isinstance(value, dict) else [(None, value)]:
            if dataclasses.is_dataclass(part):
                validate(part, path if name is None else f"{path}.{name}")
    if hasattr(spec, "check"):
        spec.check(at)


def canonical(spec: Any) -> Any:
    """A spec as plain JSON data: dataclass fields in order, enums by name, numbers of the fields' own types.

    The kind of a spec is kept in its `name`, dictionaries keep their order (groups and phases are ordered).
    """
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


@dataclass(frozen=True)
class Keyed:
    """A spec that caches can tell from others by its content."""

    key: str
    spec: Any = field(compare=False)


def keyed(spec: Any) -> Keyed:
    return Keyed(f"{type(spec).__name__} {json.dumps(canonical(spec))}", spec)
