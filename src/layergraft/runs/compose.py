"""From Hydra's config to the dataclasses, once, at the entry; nothing past it sees a DictConfig."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, open_dict

import layergraft.data  # noqa: F401  each registers its specs
import layergraft.hosts  # noqa: F401
from layergraft.donors import NoDonor
from layergraft.errors import UserError, unknown
from layergraft.explain import explain
from layergraft.schema import validate
from layergraft.specs import Config

SOURCE = "data@donor.data"


def conf_dir() -> Path:
    """The folder of the config groups: inside an installed package, beside `src/` in a checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


def spelled(override: str) -> str:
    """`donor.data=cifar10` as Hydra spells it: the group `data`, put at `donor.data`."""
    return re.sub(r"^(\+*)donor\.data=(?=[\w,.-]+$)", r"\1data@donor.data=", override)


def to_config(composed: DictConfig) -> Config:
    """The run that a composed config describes. Raises UserError for values that no run can have."""
    if "hydra" not in composed:  # Hydra has taken it out, and set it itself
        return _built(composed)
    HydraConfig.instance().set_config(composed)  # for values that are taken from there
    return _built(_without_hydra(composed))


def _without_hydra(composed: DictConfig) -> DictConfig:
    composed = composed.copy()
    with open_dict(composed):
        del composed["hydra"]
    return composed


def _built(composed: DictConfig) -> Config:
    _refuse_added(composed, "")
    for name in ("data", "host"):
        # What a donor leaves unset is the run's own: a copy, since an interpolation would let an override of the
        # donor's key change the run's.
        kind = OmegaConf.get_type(composed, "donor")
        if name in [field.name for field in dataclasses.fields(kind)] and OmegaConf.is_missing(composed.donor, name):
            composed.donor[name] = copy.deepcopy(composed[name])
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    validate(config)
    if not config.strategy.graft:
        config.donor = NoDonor()
    return config


def _refuse_added(node: DictConfig, at: str) -> None:
    """Raise UserError for a key that was added with `+` where nothing would read it."""
    kind = OmegaConf.get_type(node)
    known = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else list(node)
    for key in node:
        if key not in known:
            raise unknown(f"key{f' in {at}' if at else ''}:", str(key), known)
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            _refuse_added(child, f"{at}.{key}" if at else str(key))


class Composer:
    """Composes the runs of a sweep. Two that choose the same groups differ by values alone, which are set on a copy.

    What comes out is what comes of Hydra's `load_sweep_config` (a test compares them), at a twentieth of the time:
    Hydra takes 0.2 s for each run (hydra issue 1324).
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> Config:
        composed, values = self._chosen(overrides)
        config = copy.deepcopy(composed)
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return _built(config)

    def each(self, cells: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], Config]]:
        """Each of `cells` with the config that comes of it. Raises UserError, with its overrides, for one that none does."""
        for overrides in cells:
            try:
                config = self(overrides)
            except Exception as error:
                line = explain(error)
                if line is None:
                    raise
                raise UserError(f"{line} [in the run {' '.join(overrides)}]") from error
            yield overrides, config

    def without_foreign(self, cells: Sequence[Sequence[str]]) -> list[list[str]]:
        """`cells` less the values of donor and strategy that the one chosen in a cell does not have and another's has.

        `donor=trained,random donor.k=3` is about the trained donors, `strategy=freeze,hybrid
        strategy.phases.thaw.epoch=3` about hybrid. What no cell has stays, to be refused.
        """

        cells = self._without_sources(cells)

        def lacks(config: DictConfig, key: str) -> bool:
            parent, _, last = key.rpartition(".")
            node = OmegaConf.select(config, parent)
            return key.startswith(("donor.", "strategy.")) and (node is None or last not in node)

        foreign = []
        for overrides in cells:
            config, values = self._chosen(overrides)
            foreign.append({o.input_line for o in values if lacks(config, o.key_or_group)})
        nowhere = set.intersection(*foreign) if foreign else set()
        return [[o for o in cell if o not in gone - nowhere] for cell, gone in zip(cells, foreign, strict=True)]

    def _without_sources(self, cells: Sequence[Sequence[str]]) -> list[list[str]]:
        """`cells` less the choice of a source for a donor that learns from none of its own: the random one is the same
        whatever the source. Where no donor of the sweep does, the choice stays, to be refused."""

        def has_source(cell: Sequence[str]) -> bool:
            try:
                self._chosen(cell)
            except ConfigCompositionException as error:
                if f"Could not override '{SOURCE}'" in str(error):
                    return False
                raise
            return True

        chooses = [any(o.startswith(f"{SOURCE}=") for o in cell) for cell in cells]
        fits = [has_source(cell) if chosen else True for cell, chosen in zip(cells, chooses, strict=True)]
        if not any(fit and chosen for fit, chosen in zip(fits, chooses, strict=True)):
            return list(map(list, cells))
        return [
            [o for o in cell if fit or not o.startswith(f"{SOURCE}=")] for cell, fit in zip(cells, fits, strict=True)
        ]

    def _chosen(self, overrides: Sequence[str]) -> tuple[DictConfig, list[Override]]:
        """The composition of the groups that `overrides` choose, and the overrides that are to set values in it."""
        parsed = self.parser.parse_overrides(list(overrides))
        values = [o for o in parsed if not self.loader.repository.group_exists(o.key_or_group)]
        groups = tuple(o.input_line for o in parsed if o not in values)
        if groups not in self.composed:
            whole = self.loader.load_sweep_config(self.master, list(groups))
            HydraConfig.instance().set_config(whole)
            self.composed[groups] = _without_hydra(whole)
        return self.composed[groups], values
