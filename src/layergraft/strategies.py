"""Strategies: what learns, when and how fast. Pure: names in, plan out; knows nothing of torch or Lightning.

A strategy has ordered groups (a parameter belongs to the first group that matches it) and phases by epoch, each of
which trains a group at a multiplier of the learning rate or freezes it. What a strategy does at an epoch is a
function of that epoch alone, never of what came before, so that a resumed run does the same as one never stopped.

A pattern is a role (graft, adapter, stem, head), a module path (`layer1` and all under it), or a regular expression
that matches a whole parameter name (`.*`). Adapters go by their role, their own path or a regular expression: a module
path that has them somewhere below does not mean them, for they are new and must learn where old layers may be frozen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from layergraft.errors import UserError, listing, unknown
from layergraft.specs import StrategySpec


@dataclass(frozen=True)
class Phase:
    """One stretch of epochs: group -> multiplier of the learning rate, 0.0 where the group is frozen."""

    name: str
    epoch: int
    lr: Mapping[str, float]

    def trains(self, group: str) -> bool:
        return self.lr[group] > 0


@dataclass(frozen=True)
class Plan:
    """Every parameter in exactly one group, every norm layer with the parameters it has, and the phases in order."""

    groups: Mapping[str, Sequence[str]]
    """Group -> parameter names."""
    norms: Mapping[str, str]
    """Module path of a norm layer -> the group that holds its parameters, whose freezing stops its statistics too."""
    phases: Sequence[Phase]

    def phase(self, epoch: int) -> Phase:
        """The phase in force at `epoch` (from 0)."""
        return [phase for phase in self.phases if phase.epoch <= epoch][-1]


def matches(pattern: str, name: str, roles: Mapping[str, Sequence[str]]) -> bool:
    """Whether `pattern` covers the parameter or module `name`."""
    adapters = [path for path in roles.get("adapter", []) if _under(name, path)]
    for path in roles.get(pattern, [pattern]):
        if _under(name, path) and all(_under(path, adapter) for adapter in adapters):
            return True
    return pattern not in roles and re.fullmatch(pattern, name) is not None


def _under(name: str, path: str) -> bool:
    return name == path or name.startswith(path + ".")


def make_plan(
    spec: StrategySpec, parameters: Sequence[str], norms: Iterable[str], roles: Mapping[str, Sequence[str]], epochs: int
) -> Plan:
    """The plan of `spec` for a network with these parameter names and norm layers, over `epochs` epochs.

    Raises UserError where a pattern matches no parameter, a group is left empty, a parameter is in no group, a phase
    is out of order or past the end, or a phase does not say of each group whether it trains.
    """
    what = f"strategy {spec.name}"
    for group, patterns in spec.groups.items():
        for pattern in patterns:
            _check_pattern(f"{what}, group {group}", pattern, parameters, roles)

    def group_of(name: str) -> str | None:
        found = (group for group, patterns in spec.groups.items() if any(matches(p, name, roles) for p in patterns))
        return next(found, None)

    members: dict[str, list[str]] = {group: [] for group in spec.groups}
    for name in parameters:
        group = group_of(name)
        if group is None:
            raise UserError(f"{what}: parameter '{name}' is in no group; its groups: {listing(spec.groups)}")
        members[group].append(name)
    for group, names in members.items():
        if not names:
            raise UserError(f"{what}: group '{group}' is empty: the groups before it take all that it matches")
    return Plan(members, {norm: group_of(f"{norm}.weight") for norm in norms}, _phases(spec, what, epochs))


def _check_pattern(where: str, pattern: str, parameters: Sequence[str], roles: Mapping[str, Sequence[str]]) -> None:
    if pattern == "graft" and not roles.get("graft", ["?"]):
        raise UserError(f"{where}: there is no graft in this network (donor=none has none); strategy=full needs none")
    if pattern in roles:
        return  # there may be no adapter, or a donor where the stem was
    try:
        found = any(matches(pattern, name, roles) for name in parameters)
    except re.error as error:
        raise UserError(f"{where}: pattern '{pattern}' is not a regular expression: {error}") from None
    if not found:
        tops = dict.fromkeys(name.split(".")[0] for name in parameters)
        raise unknown(f"pattern in {where} (it matches no parameter):", pattern, dict.fromkeys([*roles, *tops]))


def _phases(spec: StrategySpec, what: str, epochs: int) -> list[Phase]:
    phases: list[Phase] = []
    if not spec.phases:
        raise UserError(f"{what} has no phases; it needs one that starts at epoch 0")
    for name, phase in spec.phases.items():
        where = f"{what}, phase {name}"
        if phase.epoch < 0:
            raise UserError(f"{where} starts at epoch {phase.epoch}; epochs count from 0")
        if phase.epoch >= epochs:
            raise UserError(
                f"{where} starts at epoch {phase.epoch}, but training ends after {epochs} epochs (0 to {epochs - 1})"
            )
        if not phases and phase.epoch != 0:
            raise UserError(f"{where} is the first and starts at epoch {phase.epoch}; it must start at 0")
        if phases and phase.epoch <= phases[-1].epoch:
            raise UserError(
                f"{where} starts at epoch {phase.epoch}, not after phase {phases[-1].name} at {phases[-1].epoch}"
            )
        for group in [*phase.train, *phase.freeze]:
            if group not in spec.groups:
                raise unknown(f"group in {where}:", group, spec.groups)
        for group, multiplier in phase.train.items():
            if not 0 < multiplier < math.inf:
                raise UserError(
                    f"{where} trains {group} at {multiplier} times the learning rate; it must be above 0 and finite, or freeze {group}"
                )
        for group in spec.groups:
            if (group in phase.train) == (group in phase.freeze):
                said = "both" if group in phase.train else "neither"
                raise UserError(f"{where} must either train or freeze group '{group}'; it says {said}")
        phases.append(Phase(name, phase.epoch, {group: phase.train.get(group, 0.0) for group in spec.groups}))
    if not any(phase.trains(group) for phase in phases for group in spec.groups):
        raise UserError(f"{what} never trains anything")
    return phases
