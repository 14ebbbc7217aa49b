"""From Hydra's config to the dataclasses, once, at the entry; nothing past it sees a DictConfig."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, ValueNode, open_dict
from omegaconf.errors import OmegaConfBaseException

from layergraft.config.error_messages import of_the_run
from layergraft.config.overrides import to_hydra
from layergraft.config.plugins import installed
from layergraft.config.registry import validate
from layergraft.config.renamed import renamed
from layergraft.config.schema import Config
from layergraft.errors import require, unknown

installed()  # before a config is composed: each module registers its kinds
SOURCE = "data@donor.data"
TARGET = "digits_b_blurred"  # the default target, for which conf/config.yaml pretrains the host
MAX_PATTERNS = 256  # kept at a time, a sixth of a megabyte each


def conf_dir() -> Path:
    """The folder of the config groups: inside an installed package, beside `src/` in a checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


def normalize_overrides(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra spells them. A donor's file without a choice of donor means the one that is cut from a file. The host
    of the default run is pretrained on images like the default target's: where other data are chosen, or the host has
    weights already, it is not, unless that is asked for."""
    _require_no_idle_pretraining(arguments)
    arguments = _without_default_pretraining(arguments)
    named = any(re.match(r"[+~]*donor=", argument) for argument in arguments)
    files = [number for number, argument in enumerate(arguments) if re.match(r"\+*donor\.path=", argument)]
    if files and not named:  # beside it: what stands at the end may be an option of Hydra's
        arguments = [*arguments[: files[0]], "donor=extracted", *arguments[files[0] :]]
    return [_of_its_choice(to_hydra(argument), arguments) for argument in arguments]


def _require_no_idle_pretraining(arguments: Sequence[str]) -> None:
    """Raise UserError for a key of the data that the host is not pretrained on; what an experiment or a size says of them is idle."""
    given = [argument.lstrip("+").partition("=") for argument in arguments]
    is_none = ("host.pretrain.data", "=", "none") in given or ("host.pretrain.data", "=", "null") in given
    idle = [key for key, _, _ in given if key.startswith("host.pretrain.data.")] if is_none else []
    require(not idle, f"host.pretrain.data is none, so {''.join(idle[:1])} says nothing; choose a data set")


def _without_default_pretraining(arguments: Sequence[str]) -> list[str]:
    """`arguments`, with the host left as it is where nothing is said of its pretraining and the default does not fit."""
    keys = [argument.lstrip("+").partition("=")[0] for argument in arguments]
    given = dict(zip(keys, (argument.partition("=")[2] for argument in arguments), strict=True))
    has_weights = given.get("host.weights", "null") != "null" or given.get("host") == "module"
    other_data = given.get("data", TARGET) != TARGET and not {"experiment", "size"} & given.keys()
    if not (has_weights or other_data) or any(re.match(r"(\w+@)?host\.pretrain\.data\b", key) for key in keys):
        return list(arguments)
    at = min(
        keys.index(key) for key in ("data", "host.weights", "host") if key in keys
    )  # options of Hydra's may stand around
    return [*arguments[:at], "data@host.pretrain.data=none", *arguments[at:]]


def _of_its_choice(override: str, arguments: Sequence[str]) -> str:
    """`donor.path=my.pt` beside `donor=extracted,random` as a choice of one, which Hydra leaves to the runs of a sweep:
    what is fixed it sets in a config with the default donor, which has no such key."""
    found = re.match(r"(donor|strategy|surgery)\.[\w.]+=(?=.)", override)
    if found is None or not any(re.match(rf"{found[1]}=.*,", argument) for argument in arguments):
        return override
    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except HydraException:
        return override  # it is refused in the words that it was asked in
    if parsed.is_sweep_override():
        return override
    value = override[found.end() :]  # Hydra's choice() does not take null; equal runs are one
    return f"{found[0]}null,null" if parsed.value() is None else f"{found[0]}choice({value})"


def to_config(composed: DictConfig) -> Config:
    """The run that a composed config describes. Raises UserError for values that no run can have."""
    if "hydra" in composed:  # else Hydra has taken it out, and set it itself
        composed = _without_hydra(composed)
    return _checked(_converted(composed))


def _without_hydra(composed: DictConfig) -> DictConfig:
    HydraConfig.instance().set_config(composed)  # for values that are taken from there
    composed = composed.copy()
    with open_dict(composed):
        del composed["hydra"]
    return composed


def _checked(config: Config) -> Config:
    validate(config)
    return config


def _converted(composed: DictConfig) -> Config:
    """The dataclasses with the values of `composed`, whatever these are. What the donor leaves unset is the run's."""
    _refuse_added(composed, "")
    for name in _unset(composed):  # copied: by an interpolation, an override of the donor's key would change the run's
        composed.donor[name] = copy.deepcopy(composed[name])
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


def _unset(composed: DictConfig) -> list[str]:
    """Which parts of the run are the donor's, too."""
    kind = OmegaConf.get_type(composed, "donor")
    known = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    return [name for name in ("data", "host") if name in known and OmegaConf.is_missing(composed.donor, name)]


def _refuse_added(node: DictConfig, at: str) -> None:
    """Raise UserError for a key that was added with `+` where nothing would read it."""
    kind = OmegaConf.get_type(node)
    known = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else list(node)
    for key in node:
        if key not in known:
            old = renamed(f"{at}.{key!s}")
            require(old is None, str(old))
            raise unknown(f"key{f' in {at}' if at else ''}:", str(key), known)
        child: Any = node._get_node(key)
        if _is_there(child):
            _refuse_added(child, f"{at}.{key!s}" if at else str(key))


def _is_there(node: Any) -> bool:
    return isinstance(node, DictConfig) and not (node._is_none() or node._is_missing() or node._is_interpolation())


def _has_value(composed: DictConfig, key: str) -> bool:
    """Whether a single value stands at `key`, which nothing but an override of just this key can change."""
    node: Any = composed
    for part in key.split("."):
        node = node._get_node(part, validate_access=False) if _is_there(node) else None
    return isinstance(node, ValueNode) and key.partition(".")[0] not in _unset(composed)


def _references(node: DictConfig, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], DictConfig]]:
    """Where a value is taken from elsewhere: its path, and the node that holds it."""
    for key in node:
        child: Any = node._get_node(key)
        if child._is_interpolation() or isinstance(child, ListConfig) and "${" in repr(child):
            yield (*at, key), node
        elif _is_there(child):
            yield from _references(child, (*at, key))


def _replaced(spec: Any, path: Sequence[str], value: Any) -> Any:
    """`spec` with `value` at `path`: what lies on the way is copied, all else is shared."""
    own = spec[path[0]] if isinstance(spec, dict) else getattr(spec, path[0])
    new = _replaced(own, path[1:], value) if len(path) > 1 else value
    if new is own or len(path) == 1 and repr(new) == repr(own):  # 1, 1.0 and True are equal
        return spec
    return {**spec, path[0]: new} if isinstance(spec, dict) else dataclasses.replace(spec, **{path[0]: new})


def _is_plain(override: Override) -> bool:
    """Whether it sets a value that is there to a number, a word or null."""
    value = None if override.is_sweep_override() else override.value()
    return (
        override.type is OverrideType.CHANGE
        and override.package is None
        and (value is None or isinstance(value, (bool, int, float, str)))
        and not re.search(r"\$\{|\?\?\?", str(override.input_line))
    )


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


class _Pattern:
    """Runs that differ by single values alone, which are set in one composition, one run after the other."""

    def __init__(self, composed: DictConfig, keys: Sequence[str]) -> None:
        """`composed`, which becomes the pattern's own, is a run of it; `keys` are those of the values."""
        self.config, self.composed = _converted(composed), composed
        self.set: dict[str, str | None] = {}
        self.varying = list(_references(composed))
        for key in keys:
            *at, last = key.split(".")
            self.varying.append(((*at, last), OmegaConf.select(composed, ".".join(at)) if at else composed))

    def __call__(self, values: Sequence[Override]) -> Config:
        for override in values:
            if self.set.get(override.key_or_group) != override.input_line:
                ConfigLoaderImpl._apply_overrides_to_config([override], self.composed)
                self.set[override.key_or_group] = override.input_line
        config = self.config
        for path, parent in self.varying:
            value = parent[path[-1]]
            config = _replaced(config, path, OmegaConf.to_object(value) if OmegaConf.is_config(value) else value)
        return config


class Composer:
    """Composes the runs of a sweep. Two that choose the same groups differ by values alone. The result is that of
    Hydra's `load_sweep_config` (a test compares them), in a hundredth of the time: Hydra takes 0.2 s a run (hydra issue
    1324), a copy of its config and the dataclasses 0.015 s. Runs share the parts that do not differ."""

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self._parsed = lru_cache(100_000)(self._parse)
        self._is_value = lru_cache(100_000)(lambda groups, key: _has_value(self.composed[groups], key))
        self.patterns: dict[tuple[object, ...], _Pattern] = {}

    def __call__(self, overrides: Sequence[str]) -> Config:
        groups, values = self._chosen(overrides)
        single = self._single(groups, values)
        pattern = (groups, *(o.key_or_group if o in single else o.input_line for o in values))
        try:
            if pattern not in self.patterns:
                if len(self.patterns) == MAX_PATTERNS:
                    del self.patterns[next(iter(self.patterns))]
                self.patterns[pattern] = _Pattern(self._whole(groups, values), [o.key_or_group for o in single])
            return _checked(self.patterns[pattern](single))
        except (OmegaConfBaseException, ConfigCompositionException):
            return _checked(_converted(self._whole(groups, values)))  # whose message is the one to show

    def _whole(self, groups: tuple[str, ...], values: Sequence[Override]) -> DictConfig:
        config = copy.deepcopy(self.composed[groups])
        ConfigLoaderImpl._apply_overrides_to_config(list(values), config)
        return config

    def _single(self, groups: tuple[str, ...], values: Sequence[Override]) -> list[Override]:
        """Those of `values` that each set a single value, which no other of them touches."""
        single = [o for o in values if self._is_value(groups, o.key_or_group) and _is_plain(o)]
        others = [o.key_or_group for o in values if o not in single]
        return [o for o in single if not any(_overlap(o.key_or_group, key) for key in others)]

    def each(self, combinations: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], Config]]:
        """Each of `combinations` with the config that comes of it. Raises UserError, with its overrides, for one that none does."""
        for overrides in combinations:
            with of_the_run(overrides):
                config = self(overrides)
            yield overrides, config

    def without_foreign(self, combinations: Sequence[Sequence[str]]) -> list[list[str]]:
        """`combinations` less the values of donor, strategy and surgery that the one chosen in a combination does not have and another's has.
        `donor=trained,random donor.aux_depth=3` is about the trained donors, `strategy=freeze,hybrid
        strategy.phases.thaw.epoch=3` about hybrid, `surgery=replace,insert surgery.gate=0` about insert. What no cell has stays, to be refused."""
        combinations = self._without_sources(combinations)

        @lru_cache(100_000)
        def lacks(groups: tuple[str, ...], key: str) -> bool:
            parent, _, last = key.rpartition(".")
            node = OmegaConf.select(self.composed[groups], parent)
            is_there = node is not None and last in node.keys()  # a key that is ??? is not "in" the node itself
            return key.startswith(("donor.", "strategy.", "surgery.")) and not is_there

        foreign: list[dict[str, str]] = []  # of each combination: override -> its key
        had: set[str] = set()
        for overrides in combinations:
            groups, values = self._chosen(overrides)
            keys = {str(o.input_line): o.key_or_group for o in values}
            foreign.append({line: key for line, key in keys.items() if lacks(groups, key)})
            had |= {key for line, key in keys.items() if line not in foreign[-1]}
        return [
            [o for o in combination if gone.get(o) not in had]
            for combination, gone in zip(combinations, foreign, strict=True)
        ]

    def _without_sources(self, combinations: Sequence[Sequence[str]]) -> list[list[str]]:
        """`combinations` less the choice of a source for a donor that learns from none, such as the random one. Where no donor
        of the sweep learns from one, the choice stays, to be refused."""

        def has_source(combination: Sequence[str]) -> bool:
            try:
                self._chosen(combination)
            except ConfigCompositionException as error:
                if f"Could not override '{SOURCE}'" in str(error):
                    return False
                raise
            return True

        less = [[o for o in combination if not o.startswith(f"{SOURCE}=")] for combination in combinations]
        choosing = [number for number, combination in enumerate(combinations) if len(less[number]) < len(combination)]
        lost = {number for number in choosing if not has_source(combinations[number])}
        if len(lost) == len(choosing):
            return list(map(list, combinations))
        return [
            less[number] if number in lost else list(combination) for number, combination in enumerate(combinations)
        ]

    def _chosen(self, overrides: Sequence[str]) -> tuple[tuple[str, ...], list[Override]]:
        """The groups that `overrides` choose, which are composed then, and the overrides that are to set values."""
        parsed = [self._parsed(override) for override in overrides]
        values = [override for override, is_group in parsed if not is_group]
        groups = tuple(str(override.input_line) for override, is_group in parsed if is_group)
        if groups not in self.composed:
            self.composed[groups] = _without_hydra(self.loader.load_sweep_config(self.master, list(groups)))
        return groups, values

    def _parse(self, override: str) -> tuple[Override, bool]:
        """What an override says, and whether it chooses from a group."""
        (parsed,) = self.parser.parse_overrides([override])
        loader = cast(ConfigLoaderImpl, self.loader)  # Hydra has no other
        return parsed, loader.repository.group_exists(parsed.key_or_group)
