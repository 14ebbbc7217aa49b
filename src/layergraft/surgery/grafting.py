"""Donors into hosts: `graft` returns a new network and leaves host and donor as they were.

What is common to all operations is here: channels are matched, adapters put around the donor, its bias dealt with. Where
that goes then, the operation says (`surgery.operation`); what was done, `Graft` and `Grafted` hold.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from layergraft.errors import UserError
from layergraft.hosts.families import block_of
from layergraft.hosts.layer_architectures import Slot, Stem, architecture_of, describe
from layergraft.hosts.norms import BATCH_NORMS, batch_norms, norm_kind
from layergraft.hosts.sites import BLOCK, STAGE, Site, shapes_only
from layergraft.seeds import derive_seed
from layergraft.surgery.channel_matching import dropped_bias, match_channels
from layergraft.surgery.operation import Chain, Operation, Placed

PARTS = ("donor", "adapter", "calibration", "host before", "host after", "head")


@dataclass(frozen=True)
class Graft:
    """What was done at one site."""

    site: Site
    slot: Slot
    donor: str
    """The donor's form in words."""
    did: tuple[str, ...]
    donor_paths: Mapping[str, str]
    """Module of the donor -> its path in the new network: the whole of it ("") but for a stem's parts, which go apart."""
    adapter_paths: tuple[str, ...]
    """Paths of adapters: modules, and gates, which are parameters."""
    calibration_paths: tuple[str, ...]
    """Paths of the modules that calibration added."""
    placed: Placed


@dataclass(frozen=True)
class Grafted:
    """A new network, the host that it was made of, and what was done; printed, the table of it."""

    network: nn.Module
    host: nn.Module
    grafts: tuple[Graft, ...]
    image: tuple[int, int, int]
    head: tuple[str, ...]
    """Module paths of the host's classifier."""
    changed: frozenset[str] = frozenset()
    """Names in the host's state dict that surgery has given other values where the host's own layers still stand."""

    @property
    def roles(self) -> dict[str, list[str]]:
        """For strategies: role -> paths."""
        return {
            "graft": [path for graft in self.grafts for path in graft.donor_paths.values()],
            "adapter": [path for graft in self.grafts for path in graft.adapter_paths],
            "calibration": [path for graft in self.grafts for path in graft.calibration_paths],
        }

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Part (donor, adapter, calibration, host before, host after, head) -> names of its parameters, every one in one part.

        What acts before the first donor and what after is measured by a dry forward.
        """
        probe = shapes_only(self.network)
        order: list[str] = []
        for path, module in probe.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(lambda module, args, path=path: order.append(path))
        with torch.no_grad():
            probe(torch.empty(2, *self.image, device="meta"))
        donors, adapters, calibration = (self.roles[role] for role in ("graft", "adapter", "calibration"))
        before = set(order[: min(order.index(path) for path in order if under(path, donors))])
        parts: dict[str, list[str]] = {part: [] for part in PARTS}
        for name, _ in self.network.named_parameters():
            if under(name, calibration):
                part = "calibration"
            elif under(name, adapters):
                part = "adapter"
            elif under(name, donors):
                part = "donor"
            elif under(name, self.head):
                part = "head"
            else:
                part = "host before" if name.rpartition(".")[0] in before else "host after"
            parts[part].append(name)
        return {part: tuple(names) for part, names in parts.items()}

    def __str__(self) -> str:
        lines = []
        for graft in self.grafts:
            site = graft.site
            shapes = " -> ".join(" x ".join(map(str, shape)) for shape in (site.in_shape, site.out_shape))
            lines += [f"site      {site.path}: {site.kind}, {shapes}", f"donor     {graft.donor}"]
            lines += [f"          {step}" for step in graft.did]
            lines += [f"adapters  {', '.join(graft.adapter_paths)}"] if graft.adapter_paths else []
            lines += [f"calibration adds  {', '.join(graft.calibration_paths)}"] if graft.calibration_paths else []
        lines.append(f"parameters added: {self.num_added:+,}")
        for part, names in self.parts.items():
            number = sum(self.network.get_parameter(name).numel() for name in names)
            lines.append(f"{part:<12}{len(names):>4} tensors {number:>12,} parameters")
        return "\n".join(lines)

    def watched(self, sites: Mapping[str, Site]) -> list[str]:
        """Module paths, in the network as in the host, where the surgery can be seen: each site, the norm and the block
        that it is in, the stages from there on, the head. `sites` are all of the host's."""
        order = list(sites)
        chosen = set(self.head)
        first = min(order.index(graft.site.path) for graft in self.grafts)
        for graft in self.grafts:
            path = graft.site.path
            chosen |= {path, *graft.placed.replaced, *([graft.site.norm] if graft.site.norm else [])}
            chosen |= {outer for outer, site in sites.items() if site.kind == BLOCK and path.startswith(outer + ".")}
        last = {path: max(order.index(other) for other in order if under(other, [path])) for path in order}
        chosen |= {path for path, site in sites.items() if site.kind == STAGE and last[path] >= first}
        return [path for path, _ in self.host.named_modules() if path in chosen]

    @property
    def num_added(self) -> int:
        """Parameters of the new network less those of the host."""
        new, old = (sum(weight.numel() for weight in network.parameters()) for network in (self.network, self.host))
        return new - old

    def undone(self) -> nn.Module:
        """The network with the host's own layers back in their places.

        What the host had and surgery changed (layers, statistics) is the host's again; what has been trained since
        elsewhere, the host's layer beside or before a donor too, stays as it is now.
        """
        network = copy.deepcopy(self.network)
        for graft in self.grafts:
            for path in graft.placed.replaced:
                kept = graft.placed.kept.get(path)
                own = copy.deepcopy(self.host.get_submodule(path)) if kept is None else network.get_submodule(kept)
                network.set_submodule(path, own)
        own_state = self.host.state_dict()
        network.load_state_dict({**network.state_dict(), **{name: own_state[name] for name in self.changed}})
        return network

    @property
    def moved(self) -> dict[str, str]:
        """Parameters of the host's that go by another name in the network: their name there -> their name in the host."""
        now = {name: self._now(name) for name, _ in self.host.named_parameters()}
        return {there: name for name, there in now.items() if there is not None and there != name}

    def _now(self, name: str) -> str | None:
        """Return what the host's tensor `name` is called in the network; None where it is no longer in it."""
        for graft in self.grafts:
            for path in graft.placed.replaced:
                if under(name, [path]):
                    kept = graft.placed.kept.get(path)
                    return None if kept is None else f"{kept}{name[len(path) :]}"
        return name

    def with_changes(self) -> Grafted:
        """The same, `changed` read off anew."""
        if next(self.host.parameters()).is_meta:
            return self  # there are no values
        now = self.network.state_dict()
        names = ((name, there, own) for name, own in self.host.state_dict().items() if (there := self._now(name)))
        return replace(self, changed=frozenset(name for name, there, own in names if not torch.equal(now[there], own)))


def under(name: str, paths: Sequence[str]) -> bool:
    """Whether `name` is one of `paths` or below one."""
    return any(name == path or name.startswith(path + ".") for path in paths)


def slot_of(host: nn.Module, site: Site, operation: Operation, image: tuple[int, int, int]) -> Slot:
    """What a donor finds at `site` under this surgery."""
    blocks = [block for part in host.modules() if (block := block_of(part)) is not None]
    shortcut = next((block.shortcut for block in blocks if block.shortcut != "identity"), "conv")
    maps = operation.takes(site)[1:]
    return Slot(site.path, operation.architecture(site), image, norm_kind(host), shortcut, maps)


def graft(
    host: nn.Module,
    donors: Sequence[tuple[Site, nn.Module]],
    operation: Operation,
    image: tuple[int, int, int],
    head: Sequence[str] = ("fc",),
    seed: int = 0,
) -> Grafted:
    """A copy of `host` with a copy of each donor at its site.

    `seed` draws adapters that are initialised at random; `head` are the module paths of the host's classifier. Adapters
    that are initialised by least squares are identities here, which `calibrated` then solves for. Raises UserError for a donor
    that does not fit, a site given twice or inside another, a fold without a batch norm to fold into.
    """
    require_apart([site for site, _ in donors])
    if donors and operation.calibrate == "batch_norm" and not batch_norms(host):
        raise UserError(
            "surgery.calibrate=batch_norm: this host has no batch norm whose statistics could be re-estimated"
        )
    network = copy.deepcopy(host)
    grafts = []
    for number, (site, donor) in enumerate(donors):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "adapter", number))
            layer = copy.deepcopy(donor).train(host.training)
            grafts.append(_graft(network, site, layer, slot_of(host, site, operation, image), operation))
    return Grafted(network, host, tuple(grafts), image, tuple(head)).with_changes()


def require_apart(sites: Sequence[Site]) -> None:
    """Raise UserError for a site that is given twice, or that lies inside another."""
    for index, site in enumerate(sites):
        for other in sites[:index]:
            if site.path == other.path:
                raise UserError(f"the site {site.path} is given twice")
            inner, outer = sorted((site.path, other.path), key=len, reverse=True)
            if inner.startswith(outer + "."):
                raise UserError(f"the site {inner} is inside {outer}, which is a site itself")


def _graft(network: nn.Module, site: Site, donor: nn.Module, slot: Slot, operation: Operation) -> Graft:
    architecture = architecture_of(donor)
    matched = match_channels(donor, slot, operation.channel_matching)
    did = list(matched.did)
    device = next(network.get_submodule(site.path).parameters()).device
    for adapter in (matched.before, matched.after):
        if adapter is not None:
            adapter.to(device)
            if operation.adapter_init == "random":  # torchvision's (He et al. 2015), with the gain of a linear layer
                nn.init.kaiming_normal_(adapter.weight, mode="fan_out", nonlinearity="linear")
            else:  # each output channel is the input channel of its number; those that have none start at zero
                nn.init.dirac_(adapter.weight)
    affine = None
    if operation.calibrate == "moments":
        channels = slot.layer.out_channels
        affine = nn.Conv2d(channels, channels, 1, groups=channels, device=device)
        nn.init.ones_(affine.weight)
        nn.init.zeros_(cast(Tensor, affine.bias))  # it has one by default
    norm = operation.norm_after(site) if matched.after is None else None
    did += _bias(network, matched.donor, affine, norm, operation, site.path)
    parts = {"before": matched.before, "pad": matched.pad, "donor": matched.donor, "after": matched.after}
    row = {name: module for name, module in [*parts.items(), ("affine", affine)] if module is not None}
    placed = operation.place(network, site, Chain(architecture, row))
    did.append(placed.did)
    if matched.after is not None:
        named = [("before", matched.before), ("after", matched.after)]
        words = [f"{name} {m.in_channels} -> {m.out_channels}" for name, m in named if m is not None]
        did.append(f"1 x 1 convolutions: {', '.join(words)}, initialised by {operation.adapter_init}")
    at = {module: path for path, module in network.named_modules()}
    whole = matched.donor in at  # else the operation has taken a stem apart
    donors = [("", matched.donor)] if whole else matched.donor.named_children()
    donor_paths = {name: at[module] for name, module in donors if module in at}
    adapters = [at[module] for module in (matched.before, matched.after) if module is not None]
    adapters += [*placed.added, *placed.gates]
    calibration = () if affine is None else (at[affine],)
    return Graft(site, slot, describe(architecture), tuple(did), donor_paths, tuple(adapters), calibration, placed)


def _bias(
    network: nn.Module, donor: nn.Module, affine: nn.Conv2d | None, follows: str | None, operation: Operation, path: str
) -> list[str]:
    """Do with the donor's bias what `operation` says, and tell it. BN(x + b) with mean m is BN(x) with mean m - b, in training
    and in evaluation. Raises UserError where there is no batch norm to fold it into."""
    bias = dropped_bias(donor) if operation.bias != "keep" else None
    if bias is None:
        return []
    if operation.bias == "drop":
        return ["bias dropped"]
    is_stem = isinstance(architecture_of(donor), Stem)
    if affine is not None and not is_stem:
        with torch.no_grad():
            cast(Tensor, affine.bias).add_(bias)
        return ["bias folded into the affine adapter"]
    owner, name = (donor, "norm") if is_stem else (network, follows)
    norm = owner.get_submodule(name) if name else None
    if not isinstance(norm, BATCH_NORMS):
        raise UserError(f"surgery.bias=fold: no batch norm follows the donor at {path} directly; keep or drop the bias")
    if norm.track_running_stats and norm.running_mean is not None:  # else it takes the batch's mean, the bias with it
        norm.running_mean -= bias
    return [f"bias folded into {'its own norm' if is_stem else follows}"]
