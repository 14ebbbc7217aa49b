"""Strategies: what learns, when and how fast. Pure: names in, plan out; knows nothing of torch or Lightning.

A strategy has ordered groups (a parameter belongs to the first group that matches it) and phases by epoch, each of
which trains a group at a multiplier of the learning rate or freezes it. What a strategy does at an epoch is a
function of that epoch and of the curves up to it, never of what else came before, so that a resumed run does the same
as one never stopped.

A pattern is a role, a module path (`layer1` and all under it), or a regular expression that matches a whole parameter
name (`.*`). The roles: graft, adapter (what surgery added around it), stem, head, norm (every norm layer), before and
after (the host's parameters that act before the graft, and after it up to the head). Adapters go by their role, their
own path or a regular expression: a module path that has them somewhere below does not mean them, for they are new and
must learn where old layers may be frozen.

A group in `split` is taken apart by depth, from the stem up to the head, into groups GROUP.PART, whose rates decay
downwards (Howard & Ruder, ULMFiT, 2018: 1/2.6; timm's layer decay: 0.75), or which begin to train from the top down
(gradual unfreezing, ibid.).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from layergraft.config.recipes import METRICS, PhaseSpec, PlateauSpec, ScheduleSpec, SplitSpec, StrategySpec
from layergraft.errors import UserError, listing, require, unknown
from layergraft.strategies.schedules import num_steps, ramp, share

OF_A_GRAFT = ("graft", "before", "after")  # roles that are there only where there is a graft
Curves = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Phase:
    """One stretch of epochs."""

    name: str
    epoch: int
    """When it starts, at the latest."""
    lr: Mapping[str, float]
    """Group -> multiplier of the learning rate, 0.0 where the group is frozen."""
    statistics: frozenset[str]
    """Groups whose norms take the batch's statistics and move their own."""
    warmup: Mapping[str, float] = field(default_factory=dict)
    """Group -> epochs of warm-up from the start of the phase."""
    begun: Mapping[str, int] = field(default_factory=dict)
    """Group -> epochs before the start of the phase at which its warm-up began; 0 where it is not named."""
    plateau: PlateauSpec = field(default_factory=PlateauSpec)

    def trains(self, group: str) -> bool:
        return self.lr[group] > 0


@dataclass(frozen=True)
class Plan:
    """Every parameter in exactly one group, every norm layer with the parameters it has, and the phases in order."""

    groups: Mapping[str, Sequence[str]]
    """Group -> parameter names; a group that is named by roles alone may have none here."""
    norms: Mapping[str, str | None]
    """Module path of a norm layer -> the group that holds its parameters, whose freezing stops its statistics too; None:
    it is in no group, and its statistics stand."""
    phases: Sequence[Phase]
    weight_decay: Mapping[str, float] = field(default_factory=dict)
    """Group -> weight decay in place of the optimizer's."""
    anchor: Mapping[str, float] = field(default_factory=dict)
    """Group -> alpha of L2-SP."""
    auto: str = "none"

    def starts(self, curves: Curves = ()) -> list[int]:
        """The epoch at which each phase starts: what it says, or sooner where `curves`, a point an epoch, plateau."""
        starts = [0]
        for phase in self.phases[1:]:
            first = phase.epoch
            if phase.plateau.patience is not None:
                first = int(min(first, starts[-1] + epochs_to_plateau(phase.plateau, curves[starts[-1] :])))
            starts.append(first)
        return starts

    def index(self, epoch: int, curves: Curves = ()) -> int:
        """Which phase is in force at `epoch` (from 0), given the points of the epochs before it."""
        return sum(start <= epoch for start in self.starts(curves[:epoch])) - 1

    def phase(self, epoch: int, curves: Curves = ()) -> Phase:
        return self.phases[self.index(epoch, curves)]

    def is_over(self, spec: PlateauSpec, curves: Curves) -> bool:
        """Whether `curves` have plateaued in the last phase: before it, there is still something to begin."""
        since = curves[self.starts(curves)[-1] :]
        return epochs_to_plateau(spec, since) <= len(since)

    def rates(self, schedule: ScheduleSpec, step: int, steps_per_epoch: int, curves: Curves = ()) -> dict[str, float]:
        """Group -> what `optim.lr` is multiplied by at `step` (from 0, over the whole training); 0.0 where frozen."""
        epoch = step // steps_per_epoch
        index = self.index(epoch, curves)
        phase, start = self.phases[index], self.starts(curves[:epoch])[index]
        left = share(schedule, step, steps_per_epoch)
        rates = {}
        for group, lr in phase.lr.items():
            since = step - (start - phase.begun.get(group, 0)) * steps_per_epoch
            warm = num_steps(phase.warmup.get(group, 0.0), steps_per_epoch)
            rates[group] = lr * left * ramp(since, warm) if lr else 0.0
        return rates


def epochs_to_plateau(spec: PlateauSpec, curves: Curves) -> float:
    """How many epochs of `curves` had passed when it had plateaued; infinity where it has not."""
    better = METRICS[spec.metric]
    best, since = None, 0
    for number, point in enumerate(curves, 1):
        value = point[spec.metric]
        gain = 0.0 if best is None else (best - value if better is min else value - best)
        if best is None or gain > spec.min_delta:
            best, since = value, 0
        else:
            since += 1
        if spec.patience is not None and since >= spec.patience:
            return number
    return math.inf


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
    spec: StrategySpec,
    parameters: Sequence[str],
    norms: Iterable[str],
    roles: Mapping[str, Sequence[str]],
    epochs: int,
    blocks: Sequence[str] = (),
) -> Plan:
    """The plan of `spec` for a network with these parameter names (in the order of the forward pass) and norm layers
    with statistics, over `epochs` epochs; `blocks` are the module paths of the host's residual blocks, for `split`.

    Raises UserError where a pattern matches no parameter, a parameter is in no group, a group is left empty that is not
    of roles alone, a phase is out of order or past the end, trains nothing, or does not say of each group whether it
    trains.
    """
    what = f"strategy {spec.name}"
    named: dict[str, str] = {}
    for group, patterns in spec.groups.items():
        require(bool(patterns), f"{what}, group {group} has no pattern, so it matches nothing")
        for pattern in patterns:
            require(
                pattern not in named,
                f"{what}: pattern '{pattern}' is in group {named.get(pattern)} and again in {group}",
            )
            named[pattern] = group
            _check_pattern(f"{what}, group {group}", pattern, parameters, roles)
    for field_name in ("split", "weight_decay", "anchor"):
        _check_groups(f"group in {what}, {field_name}:", getattr(spec, field_name), spec.groups)
    members: dict[str, list[str]] = {group: [] for group in spec.groups}

    def group_of(name: str) -> str | None:
        found = (group for group, patterns in spec.groups.items() if any(matches(p, name, roles) for p in patterns))
        return next(found, None)

    for name in parameters:
        found = group_of(name)
        if found is None:
            raise UserError(f"{what}: parameter '{name}' is in no group; its groups: {listing(spec.groups)}")
        members[found].append(name)
    for group, names in members.items():
        matched = [name for name in parameters if any(matches(p, name, roles) for p in spec.groups[group])]
        of_surgery = [path for role in ("graft", "adapter") for path in roles.get(role, [])]
        require(
            bool(names) or all(any(_under(name, path) for path in of_surgery) for name in matched),
            f"{what}: group '{group}' is empty: the groups before it take all that it matches",
        )  # a role may have nothing in this network: no adapters, or a donor where the stem was
    parts = {group: _parts(split, members[group], roles, blocks) for group, split in spec.split.items()}
    groups: dict[str, list[str]] = {}
    for group, names in members.items():
        groups |= {f"{group}.{part}": there for part, there in parts[group].items()} if group in parts else {group: names}  # fmt: skip
    group_of_parameter = {name: group for group, names in groups.items() for name in names}
    # A norm without parameters goes where its path would.
    norms_in = {norm: group_of_parameter.get(f"{norm}.weight") or group_of(norm) for norm in norms}

    def spread(values: Mapping[str, float]) -> dict[str, float]:
        """By the groups of the strategy -> by the groups of the plan."""
        return {of: value for group, value in values.items() for of in _plan_groups(group, parts)}

    return Plan(
        groups, norms_in, _phases(spec, what, epochs, parts, members), spread(spec.weight_decay), spread(spec.anchor), spec.auto
    )  # fmt: skip


def _plan_groups(group: str, parts: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    return [f"{group}.{part}" for part in parts[group]] if group in parts else [group]


def _parts(
    split: SplitSpec, names: Sequence[str], roles: Mapping[str, Sequence[str]], blocks: Sequence[str]
) -> dict[str, list[str]]:
    """Part -> parameter names, from the stem up to the head.

    What surgery put beside the blocks of a stage belongs to the block next to it, and a donor in a whole stage's place is
    one part: how many parts there are is the host's affair.
    """
    # `host` is where surgery puts a layer of the host beside or behind a donor
    paths = {name: ".".join(part for part in name.split(".") if part != "host") for name in names}
    there = [block for block in blocks if any(_under(path, block) for path in paths.values())]
    parts: dict[str, list[str]] = {"stem": []}
    head: list[str] = []
    for name, path in paths.items():
        stage = path.split(".")[0]
        around = [block for block in there if block.startswith(stage + ".")] if split.by == "block" else []
        if any(_under(name, own) for own in roles.get("head", [])):
            head.append(name)
        elif any(_under(name, own) for own in roles.get("stem", [])):
            parts["stem"].append(name)
        else:
            own = [block for block in around if _under(path, block)]
            last = [part for part in parts if part in around][-1:]
            parts.setdefault((own or last or around[:1] or [stage])[0], []).append(name)
    parts["head"] = head
    return {part: members for part, members in parts.items() if members}


def _check_groups(where: str, named: Iterable[str], groups: Iterable[str]) -> None:
    for group in named:
        if group not in groups:
            raise unknown(where, group, groups)


def _check_pattern(where: str, pattern: str, parameters: Sequence[str], roles: Mapping[str, Sequence[str]]) -> None:
    if pattern in OF_A_GRAFT and not roles.get("graft", ["?"]):
        raise UserError(
            f"{where}: there is no graft in this network (donor=none), so nothing is '{pattern}'; strategy=scratch and full need none"
        )
    if pattern in roles:
        return  # there may be no adapter, or a donor where the stem was
    try:
        found = any(matches(pattern, name, roles) for name in parameters)
    except re.error as error:
        raise UserError(f"{where}: pattern '{pattern}' is not a regular expression: {error}") from None
    if not found:
        tops = dict.fromkeys(name.split(".")[0] for name in parameters)
        raise unknown(f"pattern in {where} (it matches no parameter):", pattern, dict.fromkeys([*roles, *tops]))


def _phases(
    spec: StrategySpec,
    what: str,
    epochs: int,
    parts: Mapping[str, Mapping[str, Sequence[str]]],
    members: Mapping[str, Sequence[str]],
) -> list[Phase]:
    require(bool(spec.phases), f"{what} has no phases; it needs one that starts at epoch 0")
    phases: list[Phase] = []
    for name, phase in spec.phases.items():
        where = f"{what}, phase {name}"
        _check_phase(where, phase, spec, epochs, phases, members)
        begins = _begins(where, phase, parts, epochs)
        for epoch in sorted({phase.epoch, *begins.values()}):
            label = name if epoch == phase.epoch else f"{name}+{epoch - phase.epoch}"
            frozen_parts = [of for of, begin in begins.items() if begin > epoch]
            lr = {}
            for group in spec.groups:
                own = _plan_groups(group, parts)
                for index, of in enumerate(own):
                    split, above = spec.split.get(group), len(own) - 1 - index
                    scale = max(split.min_scale, split.decay**above) if split else 1.0
                    lr[of] = 0.0 if of in frozen_parts else phase.train.get(group, 0.0) * scale
            moving = {of for of, rate in lr.items() if rate > 0}
            if phase.statistics is not None:
                moving = {of for group in phase.statistics for of in _plan_groups(group, parts)}
            warmup = {of: length for group, length in phase.warmup.items() for of in _plan_groups(group, parts)}
            begun = {of: epoch - begins.get(of, phase.epoch) for of in lr if of not in frozen_parts}
            phases.append(Phase(label, epoch, lr, frozenset(moving), warmup, begun, phase.plateau))
            same = phases[1:] and all(getattr(phases[-1], of) == getattr(phases[-2], of) for of in ("lr", "statistics"))
            require(not same or bool(warmup), f"{where} changes nothing: it is the phase before it once more")
    return phases


def _check_phase(
    where: str,
    phase: PhaseSpec,
    spec: StrategySpec,
    epochs: int,
    before: Sequence[Phase],
    members: Mapping[str, Sequence[str]],
) -> None:
    """Raise UserError for a phase that cannot be, after the phases `before` it."""
    require(phase.epoch >= 0, f"{where} starts at epoch {phase.epoch}; epochs count from 0")
    require(
        phase.epoch < epochs,
        f"{where} starts at epoch {phase.epoch}, but training ends after {epochs} epochs (0 to {epochs - 1})",
    )
    if not before:
        require(phase.epoch == 0, f"{where} is the first and starts at epoch {phase.epoch}; it must start at 0")
        require(phase.plateau.patience is None, f"{where} is the first: it has no plateau to wait for")
    elif phase.epoch <= before[-1].epoch:
        short = (
            f" (is schedule.epochs={epochs} too short for a share of it?)" if phase.epoch == before[-1].epoch else ""
        )
        raise UserError(
            f"{where} starts at epoch {phase.epoch}, not after phase {before[-1].name} at {before[-1].epoch}{short}"
        )
    elif phase.plateau.patience is not None:
        require(
            phase.plateau.patience <= phase.epoch - before[-1].epoch - 1,
            f"{where} waits for a plateau of {phase.plateau.patience} epochs, but starts at epoch {phase.epoch} in any case, before there can be one",
        )
    for key, named in {"train": phase.train, "freeze": phase.freeze, "warmup": phase.warmup,
                       "top_down": phase.top_down, "statistics": phase.statistics or []}.items():  # fmt: skip
        _check_groups(f"group in {where}, {key}:", named, spec.groups)
    for group, multiplier in phase.train.items():
        require(
            0 < multiplier < math.inf,
            f"{where} trains {group} at {multiplier} times the learning rate; it must be above 0 and finite, or freeze {group}",
        )
    for group in spec.groups:
        if (group in phase.train) == (group in phase.freeze):
            said = "both" if group in phase.train else "neither"
            raise UserError(f"{where} must either train or freeze group '{group}'; it says {said}")
    require(
        any(members[group] for group in phase.train),
        f"{where} trains nothing: {f'there is nothing in {listing(phase.train)} here' if phase.train else 'it freezes every group'}",
    )
    for key in ("warmup", "top_down"):
        for group, length in getattr(phase, key).items():
            require(group in phase.train, f"{where}, {key}: it does not train {group}")
            require(0 <= length < math.inf, f"{where}, {key}.{group} is {length}; it must be 0 or more epochs")
    for group, length in phase.warmup.items():
        require(
            phase.epoch + length <= epochs,
            f"{where}, warmup.{group} takes {length:g} epochs from epoch {phase.epoch} on, but training ends after {epochs}",
        )
    for group in phase.top_down:
        require(group in spec.split, f"{where}, top_down: group {group} is not taken apart; strategy.split.{group}.by=stage does it")  # fmt: skip
        require(phase.plateau.patience is None, f"{where}: a phase with top_down starts at its epoch, not on a plateau")


def _begins(
    where: str, phase: PhaseSpec, parts: Mapping[str, Mapping[str, Sequence[str]]], epochs: int
) -> dict[str, int]:
    """Group of the plan -> the epoch at which it begins to train, for parts that do so from the top down, spread evenly."""
    begins = {f"{group}.{part}": phase.epoch - (-index * length // len(parts[group]))
              for group, length in phase.top_down.items()
              for index, part in enumerate(reversed(list(parts[group])))}  # fmt: skip
    for of, epoch in begins.items():
        warm = phase.warmup.get(of.partition(".")[0], 0)
        require(
            epoch < epochs and epoch + warm <= epochs,
            f"{where}: {of} would begin to train at epoch {epoch}{f', warm up for {warm:g}' if warm else ''}, but training ends after {epochs} epochs",
        )
    return begins
