"""Hosts without weights, on torch's meta device: what checks and measurements are made on. Built once for each shape.

The runs of a sweep differ by seed and strategy more than by shape, so what is built is kept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from layergraft.config.registry import Keyed, keyed
from layergraft.config.specs import HostSpec
from layergraft.hosts.blocks import blank, require_room
from layergraft.hosts.sites import Image, Site, survey
from layergraft.hosts.weights import fingerprint, matching

if TYPE_CHECKING:
    from torch import nn


def skeleton(spec: HostSpec, image: Image, num_classes: int) -> nn.Module:
    """The host of `spec`, the same object for the same arguments. Raises UserError for weights that do not match it."""
    return _skeleton(keyed(spec), fingerprint(spec), image, num_classes)


def sites_of(spec: HostSpec, image: Image, num_classes: int) -> dict[str, Site]:
    """Every site of the host of `spec` by path."""
    return _survey(skeleton(spec, image, num_classes), image)


@lru_cache(maxsize=64)
def _skeleton(keyed: Keyed, weights: str | None, image: Image, num_classes: int) -> nn.Module:
    spec = keyed.spec
    host = blank(lambda: spec.build(image, num_classes, seed=0))
    require_room(f"host={spec.name} host.width={spec.width}", host)
    matching(spec, host)
    return host


_survey = lru_cache(maxsize=64)(survey)
