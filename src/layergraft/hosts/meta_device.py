"""Hosts without weights, on torch's meta device: what checks and measurements are made on. Built once for each shape.

The runs of a sweep differ by seed and strategy more than by shape, so what is built is kept.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from layergraft.config.registry import Hashable, hashable
from layergraft.config.schema import HostSpec, PretrainSpec
from layergraft.hosts.resnet_blocks import on_meta, require_room
from layergraft.hosts.sites import Image, Site, find_sites
from layergraft.hosts.weights import fingerprint, head_fits, matching

if TYPE_CHECKING:
    from torch import nn


def meta_host(spec: HostSpec, image: Image, num_classes: int) -> nn.Module:
    """The host of `spec`, the same object for the same arguments. Raises UserError for weights that do not match it."""
    shaped = replace(spec, pretrain=PretrainSpec())  # which changes no shape, and differs from seed to seed
    return _meta_host(hashable(shaped), fingerprint(spec), image, num_classes)


def sites_of(spec: HostSpec, image: Image, num_classes: int) -> dict[str, Site]:
    """Every site of the host of `spec` by path."""
    return _survey(meta_host(spec, image, num_classes), image)


@lru_cache(maxsize=64)
def _meta_host(hashable: Hashable, weights: str | None, image: Image, num_classes: int) -> nn.Module:
    spec = hashable.spec
    host = on_meta(lambda: spec.build(image, num_classes, seed=0))
    width = f" host.width={vars(spec)['width']}" if "width" in vars(spec) else ""
    require_room(f"host={spec.name}{width}", host)
    matching(spec, host, spec.head == "keep" or spec.head == "auto" and head_fits(spec, host))
    return host


_survey = lru_cache(maxsize=64)(find_sites)
