"""Strategies: what learns, when and how fast. Pure: names in, plan out; knows nothing of torch or Lightning.

A strategy has ordered groups (a parameter belongs to the first group that matches it) and phases by epoch, each of
which trains a group at a multiplier of the learning rate or freezes it. What a strategy does at an epoch is a
function of that epoch and of the curves up to it, never of what else came before, so that a resumed run does the same
as one never stopped.

A pattern is a role, a module path (`layer1` and all under it), or a regular expression that matches a whole parameter
name (`.*`). The roles: graft, adapter (1 x 1 convolutions, gates and whatever else surgery added around it), calibration (the
scale and shift that surgery.calibrate=moments adds), stem, stage1, stage2 and so on, head, norm (every norm layer), before and
after (the host's parameters that act before the graft, and after it up to the head). Without a graft (donor=none) the roles
graft, adapter, calibration, before and after match nothing. Adapters go by their role, their own path or a regular expression: a
module path that has them somewhere below does not mean them, for they are new and must learn where old layers may be frozen.
Calibration's parameters go by their role or their own path alone, since to learn them is to do more than to calibrate: where no
group names them they are a group `calibration` that is frozen throughout; one that names them beside others is shown as two.

A group in `split` is taken apart by depth, from the stem up to the head, into groups GROUP.PART, whose rates decay
downwards (Howard & Ruder, ULMFiT, 2018: 1/2.6; timm's layer decay: 0.75), or which begin to train from the top down
(gradual unfreezing, ibid.).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from layergraft.config.metric_registry import lookup
from layergraft.config.training_schema import PhaseSpec, PlateauSpec, ScheduleSpec, SplitSpec, StrategySpec
from layergraft.errors import UserError, listing, require, unknown
from layergraft.strategies.lr_schedules import num_steps, ramp, share

CALIBRATION = "calibration"
OF_A_GRAFT = ("graft", "adapter", CALIBRATION, "before", "after")  # roles that match nothing where there is no graft
Curves = Sequence[Mapping[str, float]]
Names = Mapping[str, Sequence[str]]  # role or group -> module paths or names of parameters
Value = TypeVar("Value")


@dataclass(frozen=True)
class Phase:
    """One stretch of epochs."""

    name: str
    epoch: int  # when it starts, at the latest
    lr: Mapping[str, float]  # group -> multiplier of the learning rate, 0.0 where the group is frozen
    batch_norm_statistics: frozenset[str]  # groups whose norms take the batch's statistics and move their own
    warmup: Mapping[str, float] = field(default_factory=dict)  # group -> epochs of warm-up from the start of the phase
    begun: Mapping[str, int] = field(default_factory=dict)
    """Group -> epochs before the start of the phase at which its warm-up began; 0 where it is not named."""
    plateau: PlateauSpec = field(default_factory=PlateauSpec)

    def trains(self, group: str) -> bool:
        return self.lr[group] > 0


@dataclass(frozen=True)
class TrainingPlan:
    """Every parameter in exactly one group, every norm layer with the parameters it has, and the phases in order."""

    groups: Names  # group -> parameter names; a group that is named by roles alone may have none here
    norms: Mapping[str, str | None]
    """Module path of a norm layer -> the group that holds its parameters, whose freezing stops its statistics too; None:
    it is in no group, and its statistics stand."""
    phases: Sequence[Phase]
    weight_decay: Mapping[str, float] = field(default_factory=dict)  # group -> weight decay in place of the optimizer's
    l2_sp: Mapping[str, float] = field(default_factory=dict)  # group -> alpha of L2-SP
    tensor_lr: str = "none"

    def starts(self, curves: Curves = ()) -> list[int]:
        """The epoch at which each phase starts: what it says, or sooner where `curves`, a point an epoch, plateau."""
        starts = [0]
        for phase in self.phases[1:]:
            first = phase.epoch
            if phase.plateau.patience is not None:
                first = int(min(first, starts[-1] + epochs_to_plateau(phase.plateau, curves[starts[-1] :])))
            starts.append(first)
        return starts

    def phase(self, epoch: int, curves: Curves = ()) -> Phase:
        """What is in force at `epoch` (from 0), given the points of the epochs before it."""
        return self.phases[bisect_right(self.starts(curves[:epoch]), epoch) - 1]

    def is_over(self, spec: PlateauSpec, curves: Curves) -> bool:
        """Whether `curves` have plateaued in the last phase: before it, there is still something to begin."""
        since = curves[self.starts(curves)[-1] :]
        return epochs_to_plateau(spec, since) <= len(since)

    def rates(self, schedule: ScheduleSpec, step: int, steps_per_epoch: int, curves: Curves = ()) -> dict[str, float]:
        """Group -> what `optim.lr` is multiplied by at `step` (from 0, over the whole training); 0.0 where frozen."""
        epoch = step // steps_per_epoch
        phase = self.phase(epoch, curves)
        start = max(start for start in self.starts(curves[:epoch]) if start <= epoch)
        left = share(schedule, step, steps_per_epoch)
        rates = {}
        for group, lr in phase.lr.items():
            since = step - (start - phase.begun.get(group, 0)) * steps_per_epoch
            warm = num_steps(phase.warmup.get(group, 0.0), steps_per_epoch)
            rates[group] = lr * left * ramp(since, warm) if lr else 0.0
        return rates


def epochs_to_plateau(spec: PlateauSpec, curves: Curves) -> float:
    """How many epochs of `curves` had passed when it had plateaued; infinity where it has not."""
    if spec.patience is None:
        return math.inf
    metric = lookup(spec.metric)
    assert metric is not None  # the config has been checked
    best, since = None, 0
    for number, point in enumerate(curves, 1):
        value = point[spec.metric]
        gain = 0.0 if best is None else (best - value if metric.direction == "lower" else value - best)
        if not math.isnan(value) and (best is None or gain > spec.min_delta):
            best, since = value, 0
        else:
            since += 1
        if since >= spec.patience:
            return number
    return math.inf


def matches(pattern: str, name: str, roles: Names) -> bool:
    """Whether `pattern` covers the parameter or module `name`."""
    added = [path for role in ("adapter", CALIBRATION) for path in roles.get(role, []) if _under(name, path)]
    paths = [path for path in roles.get(pattern, [pattern]) if _under(name, path)]
    if any(all(_under(path, new) for new in added) for path in paths):
        return True
    return pattern not in roles and not _calibrates(name, roles) and re.fullmatch(pattern, name) is not None


def _calibrates(name: str, roles: Names) -> bool:
    return any(_under(name, path) for path in roles.get(CALIBRATION, []))


def _under(name: str, path: str) -> bool:
    return name == path or name.startswith(path + ".")


def stage_roles(stages: Sequence[str]) -> dict[str, Sequence[str]]:
    """The roles stage1, stage2, ... of a host with these module paths; a host without stages has an empty stage1."""
    return {"stage1": [], **{f"stage{number}": [path] for number, path in enumerate(stages, 1)}}


def make_plan(
    spec: StrategySpec,
    parameters: Sequence[str],
    norms: Sequence[str],
    roles: Names,
    epochs: int,
    blocks: Sequence[str] = (),
    stages: Sequence[str] = (),
    moved: Mapping[str, str] = MappingProxyType({}),
) -> TrainingPlan:
    """The plan of `spec` for a network with these parameter names (in the order of the forward pass) and norm layers
    with statistics, over `epochs` epochs. For `split`: `blocks` and `stages` are the module paths of the host's, `moved` has
    the name in the host of each parameter that surgery has given another.

    Raises UserError where a pattern matches no parameter, a parameter is in no group, a group is left empty that is not
    of roles alone, a phase is out of order or past the end, trains nothing, or does not say of each group whether it
    trains.
    """
    what = f"strategy {spec.name}"
    named: dict[str, str] = {}
    for group, patterns in spec.groups.items():
        require(bool(patterns), f"{what}, group {group} has no pattern, so it matches nothing")
        for pattern in patterns:
            again = f"{what}: pattern '{pattern}' is in group {named.get(pattern)} and again in {group}"
            require(pattern not in named, again)
            named[pattern] = group
            _check_pattern(f"{what}, group {group}", pattern, parameters, roles)
    absent = [pattern for pattern in named if pattern in OF_A_GRAFT and not roles.get("graft", ["?"])]
    no_graft = f"; there is no graft (donor=none), so no parameter has the role {listing(absent)}; use strategy=full"
    why = no_graft if absent else ""
    for key in ("split", "weight_decay", "l2_sp"):
        _check_groups(f"group in {what}, {key}:", getattr(spec, key), spec.groups)
    matching = {
        name: [group for group, patterns in spec.groups.items() if any(matches(p, name, roles) for p in patterns)]
        for name in [*parameters, *norms]
    }
    for name in parameters:
        left = f"{what}: parameter '{name}' is in no group; its groups: {listing(spec.groups)}{why}"
        require(bool(matching[name]) or _calibrates(name, roles), left)
    of_surgery = [path for role in ("graft", "adapter", CALIBRATION) for path in roles.get(role, [])]
    groups: dict[str, list[str]] = {}
    own: dict[str, list[str]] = {}  # group of the strategy -> its groups in the plan
    for group in spec.groups:
        there = [name for name in parameters if group in matching[name]]
        names = [name for name in there if matching[name][0] == group]
        # A role may have nothing in this network: no adapters, or a donor where the stem was.
        may_be_empty = all(any(_under(name, path) for path in of_surgery) for name in there)
        taken = f"{what}: group '{group}' is empty: the groups before it take all that it matches"
        require(bool(names) or may_be_empty, taken)
        if group in spec.split and names:
            parts = _parts(group, spec.split[group], names, roles, blocks, stages, moved)
        else:
            parts = _apart(group, names, roles)
        own[group] = list(parts)
        groups |= parts
    if unnamed := [name for name in parameters if not matching[name]]:
        clash = f"{what}: group '{CALIBRATION}' does not have the role {CALIBRATION}; add it, or rename the group"
        require(CALIBRATION not in groups, clash)
        groups[CALIBRATION], own[CALIBRATION] = unnamed, [CALIBRATION]
    group_of = {name: group for group, names in groups.items() for name in names}
    # A norm without parameters goes where its path would.
    norms_in = {norm: group_of.get(f"{norm}.weight", next(iter(matching[norm]), None)) for norm in norms}
    decay, l2_sp = _spread(spec.weight_decay, own), _spread(spec.l2_sp, own)
    return TrainingPlan(groups, norms_in, _phases(spec, what, epochs, own, groups, why), decay, l2_sp, spec.tensor_lr)


def _spread(values: Mapping[str, Value], own: Names) -> dict[str, Value]:
    """By the groups of the strategy -> by the groups of the plan."""
    return {of: value for group, value in values.items() for of in own[group]}


def _apart(group: str, names: Sequence[str], roles: Names) -> dict[str, list[str]]:
    """GROUP, and GROUP.calibration where it has calibration's parameters beside others."""
    calibrating = [name for name in names if _calibrates(name, roles)]
    others = [name for name in names if name not in calibrating]
    return {group: others, f"{group}.{CALIBRATION}": calibrating} if calibrating and others else {group: list(names)}


def _parts(
    group: str,
    split: SplitSpec,
    names: Sequence[str],
    roles: Names,
    blocks: Sequence[str],
    stages: Sequence[str],
    moved: Mapping[str, str],
) -> dict[str, list[str]]:
    """GROUP.PART -> parameter names, from the stem up to the head.

    What surgery put beside the blocks of a stage belongs to the block next to it, and a donor in a whole stage's place is
    one part: how many parts there are is the host's affair.
    """
    paths = {name: moved.get(name, name) for name in names}
    there = [block for block in blocks if any(_under(path, block) for path in paths.values())]
    stage_of = _stages(list(paths.values()), stages)
    parts: dict[str, list[str]] = {"stem": []}
    head: list[str] = []
    for name, path in paths.items():
        stage = stage_of[path]
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
    return {f"{group}.{part}": members for part, members in parts.items() if members}


def _stages(paths: Sequence[str], stages: Sequence[str]) -> dict[str, str]:
    """Path of a parameter -> the stage that it is in. What lies between two stages goes with the one after it, and what is
    in no module that has stages with its module at the top of the network."""
    found: dict[str, str] = {}
    after = ""
    for path in reversed(paths):
        own, top = next((stage for stage in stages if _under(path, stage)), None), path.split(".")[0]
        after = found[path] = own or (after if _under(after, top) else top)
    return found


def _check_groups(where: str, named: Iterable[str], groups: Iterable[str]) -> None:
    for group in named:
        if group not in groups:
            raise unknown(where, group, groups)


def _check_pattern(where: str, pattern: str, parameters: Sequence[str], roles: Names) -> None:
    if pattern in roles or pattern in OF_A_GRAFT:
        return  # there may be no graft, no adapter, no calibration, or a donor where the stem was
    try:
        found = any(matches(pattern, name, roles) for name in parameters)
    except re.error as error:
        raise UserError(f"{where}: pattern '{pattern}' is not a regular expression: {error}") from None
    if not found:
        tops = dict.fromkeys(name.split(".")[0] for name in parameters)
        raise unknown(f"pattern in {where} (it matches no parameter):", pattern, dict.fromkeys([*roles, *tops]))


def _phases(spec: StrategySpec, what: str, epochs: int, own: Names, groups: Names, why: str) -> list[Phase]:
    """`why` says in errors why groups may be empty."""
    require(bool(spec.phases), f"{what} has no phases; it needs one that starts at epoch 0")
    scale = {
        of: split.decay**above for group, split in spec.split.items() for above, of in enumerate(reversed(own[group]))
    }
    phases: list[Phase] = []
    for name, phase in spec.phases.items():
        where = f"{what}, phase {name}"
        _check_phase(where, phase, spec, epochs, phases)
        nothing = f"there is nothing in {listing(phase.train)} here{why}" if phase.train else "it freezes every group"
        require(any(groups[of] for of in _spread(phase.train, own)), f"{where} trains nothing: {nothing}")
        _check_lengths(where, phase, spec, epochs)
        begins = _begins(where, phase, own, epochs)
        for epoch in sorted({phase.epoch, *begins.values()}):
            label = name if epoch == phase.epoch else f"{name}+{epoch - phase.epoch}"
            frozen = [of for of, begin in begins.items() if begin > epoch]
            multiplier = _spread({group: phase.train.get(group, 0.0) for group in own}, own)
            lr = {of: 0.0 if of in frozen else rate * scale.get(of, 1.0) for of, rate in multiplier.items()}
            moving = [of for of, rate in lr.items() if rate > 0]
            if phase.batch_norm_statistics is not None:
                moving = [of for group in phase.batch_norm_statistics for of in own[group]]
            warmup = _spread(phase.warmup, own)
            begun = {of: epoch - begins.get(of, phase.epoch) for of in lr if of not in frozen}
            same = bool(phases) and (phases[-1].lr, phases[-1].batch_norm_statistics) == (lr, frozenset(moving))
            require(not same or bool(warmup), f"{where} changes nothing: it is the phase before it once more")
            phases.append(Phase(label, epoch, lr, frozenset(moving), warmup, begun, phase.plateau))
    return phases


def _check_phase(where: str, phase: PhaseSpec, spec: StrategySpec, epochs: int, before: Sequence[Phase]) -> None:
    """Raise UserError for a phase that cannot be, after the phases `before` it."""
    starts, waits = f"{where} starts at epoch {phase.epoch}", phase.plateau.patience
    require(phase.epoch >= 0, f"{starts}; epochs count from 0")
    require(phase.epoch < epochs, f"{starts}, but training ends after {epochs} epochs (0 to {epochs - 1})")
    if not before:
        require(phase.epoch == 0, f"{where} is the first and starts at epoch {phase.epoch}; it must start at 0")
        require(waits is None, f"{where} is the first: it has no plateau to wait for")
    else:
        last = before[-1]
        short = f" (is schedule.epochs={epochs} too short for a share of it?)" if phase.epoch == last.epoch else ""
        require(phase.epoch > last.epoch, f"{starts}, not after phase {last.name} at {last.epoch}{short}")
        in_vain = f"{where} waits for a plateau of {waits} epochs, but starts at epoch {phase.epoch} in any case"
        require(waits is None or waits < phase.epoch - last.epoch, f"{in_vain}, before there can be one")
    for key in ("train", "freeze", "warmup", "gradual_unfreeze", "batch_norm_statistics"):
        _check_groups(f"group in {where}, {key}:", getattr(phase, key) or (), spec.groups)
    for group, multiplier in phase.train.items():
        trains = f"{where} trains {group} at {multiplier} times the learning rate"
        require(0 < multiplier < math.inf, f"{trains}; it must be above 0 and finite, or freeze {group}")
    for group in spec.groups:
        if (group in phase.train) == (group in phase.freeze):
            said = "both" if group in phase.train else "neither"
            raise UserError(f"{where} must either train or freeze group '{group}'; it says {said}")


def _check_lengths(where: str, phase: PhaseSpec, spec: StrategySpec, epochs: int) -> None:
    """Raise UserError for a warm-up or a gradual_unfreeze of a group that cannot have one, or that is too long."""
    for key in ("warmup", "gradual_unfreeze"):
        for group, length in getattr(phase, key).items():
            require(group in phase.train, f"{where}, {key}: it does not train {group}")
            require(0 <= length < math.inf, f"{where}, {key}.{group} is {length}; it must be 0 or more epochs")
    for group, length in phase.warmup.items():
        takes = f"{where}, warmup.{group} takes {length:g} epochs from epoch {phase.epoch} on"
        require(phase.epoch + length <= epochs, f"{takes}, but training ends after {epochs}")
    for group in phase.gradual_unfreeze:
        whole = f"{where}, gradual_unfreeze: group {group} is not taken apart; strategy.split.{group}.by=stage does it"
        require(group in spec.split, whole)
        require(
            phase.plateau.patience is None,
            f"{where}: a phase with gradual_unfreeze starts at its epoch, not on a plateau",
        )


def _begins(where: str, phase: PhaseSpec, own: Names, epochs: int) -> dict[str, int]:
    """Group of the plan -> the epoch at which it begins to train, for parts that do so from the top down, spread evenly."""
    begins = {}
    for group, length in phase.gradual_unfreeze.items():
        warm = phase.warmup.get(group, 0)
        warms = f", warm up for {warm:g}" if warm else ""
        for index, of in enumerate(reversed(own[group])):
            begins[of] = epoch = phase.epoch - (-index * length // len(own[group]))
            begin = f"{where}: {of} would begin to train at epoch {epoch}{warms}"
            require(epoch < epochs and epoch + warm <= epochs, f"{begin}, but training ends after {epochs} epochs")
    return begins
