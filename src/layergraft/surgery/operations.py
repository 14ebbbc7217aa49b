"""The operations: a donor replaces a site, is inserted before or after it, or stands beside it.

`graft` returns a new network and leaves host and donor as they were. What it puts at a site is plain modules, so that
the network compiles, exports, copies and saves like any other.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from layergraft.config.schema import SurgerySpec
from layergraft.errors import UserError
from layergraft.hosts.architectures import Conv, Slot, Stem, architecture_of, describe
from layergraft.hosts.families import block_of
from layergraft.hosts.norms import BATCH_NORMS, batch_norms, norm_kind
from layergraft.hosts.sites import BLOCK, STAGE, Site, shapes_only
from layergraft.seeds import derive_seed
from layergraft.surgery.channel_matching import dropped_bias, fitted

PARTS = ("donor", "adapter", "host before", "host after", "head")


class Parallel(nn.Module):
    """`host(x) + gate * donor(x)`, the gate a single learnt number (ReZero, SkipInit); 1 and not learnt for None."""

    def __init__(self, host: nn.Module, donor: nn.Module, gate: float | None) -> None:
        super().__init__()
        self.host, self.donor = host, donor
        self.gate = None if gate is None else nn.Parameter(torch.tensor(float(gate)))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.donor(x)
        return cast(Tensor, self.host(x) + (branch if self.gate is None else self.gate * branch))


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
    """Paths of adapters: modules, and the gate, which is a parameter."""
    chain: str
    """Module path in the new network of what gives the donor's output: the donor with the adapters around it."""
    inserted: str | None
    """before or after the site, for an insert."""
    replaced: tuple[str, ...]
    """Module paths of the host where something else stands now; the last is where the host gives the chain's counterpart."""


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
        }

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Part (donor, adapter, host before, host after, head) -> names of its parameters, every one in one part.

        What acts before the first donor and what after is measured by a dry forward.
        """
        probe = shapes_only(self.network)
        order: list[str] = []
        for path, module in probe.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(lambda module, args, path=path: order.append(path))
        with torch.no_grad():
            probe(torch.empty(2, *self.image, device="meta"))
        donors, adapters = self.roles["graft"], self.roles["adapter"]
        before = set(order[: min(order.index(path) for path in order if under(path, donors))])
        parts: dict[str, list[str]] = {part: [] for part in PARTS}
        for name, _ in self.network.named_parameters():
            if under(name, adapters):
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
            chosen |= {path, *graft.replaced, *([graft.site.norm] if graft.site.norm else [])}
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
            for path in graft.replaced:
                kept = getattr(network.get_submodule(path), "host", None)  # of an insert or a branch
                network.set_submodule(path, copy.deepcopy(self.host.get_submodule(path)) if kept is None else kept)
        own = self.host.state_dict()
        network.load_state_dict({**network.state_dict(), **{name: own[name] for name in self.changed}})
        return network

    def _now(self, name: str) -> str:
        """What the host's tensor `name` is called in the network, if it is there."""
        for graft in self.grafts:
            for path in graft.replaced:
                if under(name, [path]):
                    return f"{path}.host{name[len(path) :]}"
        return name

    def with_changes(self) -> Grafted:
        """The same, `changed` read off anew."""
        if next(self.host.parameters()).is_meta:
            return self  # there are no values
        now = self.network.state_dict()
        pairs = ((name, now.get(self._now(name)), tensor) for name, tensor in self.host.state_dict().items())
        names = {name for name, tensor, own in pairs if tensor is not None and not torch.equal(tensor, own)}
        return replace(self, changed=frozenset(names))


def under(name: str, paths: Sequence[str]) -> bool:
    """Whether `name` is one of `paths` or below one."""
    return any(name == path or name.startswith(path + ".") for path in paths)


def slot_of(host: nn.Module, site: Site, spec: SurgerySpec, image: tuple[int, int, int]) -> Slot:
    """What a donor finds at `site` under this surgery."""
    blocks = [block for part in host.modules() if (block := block_of(part)) is not None]
    shortcut = next((block.shortcut for block in blocks if block.shortcut != "identity"), "conv")
    channels = (site.in_shape if spec.where == "before" else site.out_shape)[0]
    link = Conv(channels, channels, 3, 1, 1)
    architecture = link if spec.name == "insert" else site.architecture
    return Slot(site.path, architecture, image, norm_kind(host), shortcut)


def graft(
    host: nn.Module,
    donors: Sequence[tuple[Site, nn.Module]],
    spec: SurgerySpec,
    image: tuple[int, int, int],
    head: Sequence[str] = ("fc",),
    seed: int = 0,
) -> Grafted:
    """A copy of `host` with a copy of each donor at its site.

    `seed` draws the start of adapters whose start is random; `head` are the module paths of the host's classifier.
    Adapters that start by least squares begin as identities, and `calibrated` fits them. Raises UserError for a donor
    that does not fit, a site given twice or inside another, a fold without a batch norm to fold into.
    """
    require_apart([site for site, _ in donors])
    if donors and spec.calibrate == "batch_norm" and not batch_norms(host):
        raise UserError(
            "surgery.calibrate=batch_norm: this host has no batch norm whose statistics could be re-estimated"
        )
    network = copy.deepcopy(host)
    grafts = []
    for number, (site, donor) in enumerate(donors):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "adapter", number))
            layer = copy.deepcopy(donor).train(host.training)
            grafts.append(_graft(network, site, layer, slot_of(host, site, spec, image), spec))
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


def _graft(network: nn.Module, site: Site, donor: nn.Module, slot: Slot, spec: SurgerySpec) -> Graft:
    architecture = architecture_of(donor)
    fit = fitted(donor, slot, spec.fit)
    did, path, own = list(fit.did), site.path, network.get_submodule(site.path)
    device = next(own.parameters()).device
    for adapter in (fit.before, fit.after):
        if adapter is not None:
            adapter.to(device)
            if spec.start == "random":  # torchvision's start (He et al. 2015), with the gain of a linear layer
                nn.init.kaiming_normal_(adapter.weight, mode="fan_out", nonlinearity="linear")
            else:  # each output channel is the input channel of its number; those that have none start at zero
                nn.init.dirac_(adapter.weight)
    links = spec.name == "insert" and spec.where == "after" and spec.gate is None
    # The norm that takes what the donor gives.
    follows = site.norm if fit.after is None and (spec.name == "replace" or links) else None
    affine = None
    if spec.calibrate == "moments":
        channels = slot.layer.out_channels
        affine = nn.Conv2d(channels, channels, 1, groups=channels, device=device)
        nn.init.ones_(affine.weight)
        nn.init.zeros_(cast(Tensor, affine.bias))  # it has one by default
    did += _bias(network, fit.donor, affine, follows, spec, path)
    row = {"before": fit.before, "pad": fit.pad, "donor": fit.donor, "after": fit.after, "affine": affine}
    around = {name: module for name, module in row.items() if module is not None}
    adapters: tuple[str, ...]

    if isinstance(architecture, Stem) and spec.name == "replace" and follows is not None:
        # The host's convolution and norm make room for the donor's; the ReLU after them is the host's.
        conv, norm = (fit.donor.get_submodule(name) for name in ("conv", "norm"))
        network.set_submodule(path, conv if fit.pad is None else _row(pad=fit.pad, donor=conv))
        network.set_submodule(follows, norm if affine is None else _row(norm=norm, affine=affine))
        donors = {"conv": path if fit.pad is None else f"{path}.donor"}
        donors["norm"] = follows if affine is None else f"{follows}.norm"
        adapters = () if affine is None else (f"{follows}.affine",)
        did.append(f"{path} and {follows} make room for the stem's convolution and norm")
        return Graft(site, slot, describe(architecture), tuple(did), donors, adapters, follows, None, (path, follows))

    chain, start = fit.donor if len(around) == 1 else _row(**around), path
    inserted = spec.where if spec.name == "insert" else None
    behind = "" if spec.gate is None else f", behind a gate that starts at {spec.gate:g}"
    if spec.name == "replace":
        network.set_submodule(path, chain)
        did.append(f"{path} makes room for the donor")
    elif spec.name == "parallel":
        network.set_submodule(path, Parallel(own, chain, spec.gate))
        start = f"{path}.donor"
        did.append(f"the donor stands beside {path}{behind}")
    else:
        link = chain if spec.gate is None else Parallel(nn.Identity(), chain, spec.gate)
        parts = {"donor": link, "host": own} if spec.where == "before" else {"host": own, "donor": link}
        network.set_submodule(path, _row(**parts))
        start = f"{path}.donor" if spec.gate is None else f"{path}.donor.donor"
        did.append(f"the donor is inserted {spec.where} {path}{behind}")
    donors = {"": start if len(around) == 1 else f"{start}.donor"}
    adapters = tuple(f"{start}.{name}" for name in around if name not in ("pad", "donor"))
    if spec.gate is not None:
        adapters += (f"{start.removesuffix('.donor')}.gate",)
    if fit.after is not None:
        named = [("before", fit.before), ("after", fit.after)]
        words = [f"{name} {m.in_channels} -> {m.out_channels}" for name, m in named if m is not None]
        did.append(f"1 x 1 convolutions: {', '.join(words)}, start {spec.start}")
    return Graft(site, slot, describe(architecture), tuple(did), donors, adapters, start, inserted, (path,))


def _row(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _bias(
    network: nn.Module, donor: nn.Module, affine: nn.Conv2d | None, follows: str | None, spec: SurgerySpec, path: str
) -> list[str]:
    """Do with the donor's bias what `spec` says, and tell it. BN(x + b) with mean m is BN(x) with mean m - b, in training
    and in evaluation. Raises UserError where there is no batch norm to fold it into."""
    bias = dropped_bias(donor) if spec.bias != "keep" else None
    if bias is None:
        return []
    if spec.bias == "drop":
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
