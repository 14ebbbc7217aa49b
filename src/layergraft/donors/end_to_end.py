"""Donors cut out of a whole network that is trained here, end to end: the co-adapted controls.

`donor=end_to_end` trains the network on the source task; `donor=self` takes the host's own layer, trained on the
target task: that of the host with its trained weights, where it has some, else of the host trained from scratch on the target
from another initialisation (Yosinski et al. 2014, 'selffer' networks, BnB).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from layergraft.config.data_schema import DataSpec
from layergraft.config.registry import register
from layergraft.config.schema import RESULT_VERSION, HostSpec
from layergraft.config.training_schema import OptimSpec, ScheduleSpec
from layergraft.donors.controls import Control, LearnedDonor
from layergraft.donors.donor_kind import THE_DONOR, DonorKind
from layergraft.errors import UserError, unknown
from layergraft.hosts import weights
from layergraft.hosts.layer_architectures import Architecture, Conv, Slot, Stem, norm_name
from layergraft.networks import network_cache, pretrained_hosts
from layergraft.seeds import derive_seed
from layergraft.store.files import digest, label

if TYPE_CHECKING:
    from torch import nn

    from layergraft.data.image_data import ImageData
    from layergraft.data.normalization import Normalization
    from layergraft.data.overlap import Learned
    from layergraft.donors.donor_cache import Donor
    from layergraft.hosts.sites import Site
    from layergraft.training.backend import Backend


SELF = "self"  # the name of the donor whose data and host are the run's own: conf/donor/self.yaml


@register("donor", "end_to_end")
@dataclass
class EndToEndDonor(LearnedDonor):
    """The layer of a network, which is trained first unless it has trained weights and is not to be tuned."""

    name: str = "end_to_end"
    data: DataSpec = MISSING
    host: HostSpec = MISSING
    optim: OptimSpec = MISSING
    schedule: ScheduleSpec = MISSING
    tune: bool = False
    """Train the network on `data` whatever weights it has: from those of `host.weights` on, or else from initial weights; its
    `host.pretrain` does not count then."""
    layer: str | None = None
    """The module path in the network; null: the site's own path. A stem is named by its convolution."""

    def source(self) -> str:
        return f"{self.host.name}-{self.data.name}"

    @property
    def is_trained(self) -> bool:
        """Whether the network is trained here, rather than taken with its weights as it is."""
        return self.tune or not (self.host.weights or self.host.is_pretrained)

    def images(self, slot: Slot) -> ImageData:
        """With the channels that its network takes, whatever the host does."""
        return self.loaded().with_channels(self.host.in_channels)

    def decides(self, slot: Slot) -> dict[str, Any]:
        fields = super().decides(slot)
        fields["layer"] = self.layer or slot.path
        fields["host"] |= self._host_identity()
        if not self.is_trained:  # then its data and its training say nothing
            for name in ("data", "optim", "schedule", *(["seed"] if self.control is Control.none else [])):
                del fields[name]
        return fields

    def build(self, slot: Slot, backend: Backend, outputs: Path) -> tuple[nn.Module, dict[str, Any]]:
        """Every site cuts from the same network, which is kept under a key of its own."""
        network, facts = self._trained(slot, backend, outputs)
        site = self.site(self.images(slot), slot)
        layer = network.get_submodule(site.path)
        if self.kind != Stem.kind:
            return layer, facts
        stem = self.architecture(slot).build()
        stem.get_submodule("conv").load_state_dict(layer.state_dict())
        assert site.norm is not None  # else `architecture` would have refused
        stem.get_submodule("norm").load_state_dict(network.get_submodule(site.norm).state_dict())
        return stem, facts

    def learned_from(self, slot: Slot) -> Learned | None:
        """`donor=self` takes data and host from the run, so its keys are the run's; what its host has learned from is the run's affair."""
        if self.is_trained:
            own = super().learned_from(slot)
            return replace(own, at="data") if own is not None and self.name == SELF else own
        return None if self.name == SELF else pretrained_hosts.learned_from(self.host, THE_DONOR, "donor.host.pretrain")

    def saw(self, slot: Slot, donor: Donor, backend: Backend, outputs: Path) -> tuple[nn.Module, nn.Module]:
        network, _ = self._trained(slot, backend, outputs)
        return network, network.get_submodule(self.site(self.images(slot), slot).path)

    def _trained(self, slot: Slot, backend: Backend, outputs: Path) -> tuple[nn.Module, dict[str, Any]]:
        """The network that the layer is cut from, and what is known of it."""
        images = self.images(slot)
        if not self.is_trained and self.host.is_pretrained:
            return pretrained_hosts.pretrain(self.host, backend, outputs)
        network = weights.pretrained(
            self.host, images.shape, images.num_classes, derive_seed(self.seed, "donor", "host")
        )
        if not self.is_trained:
            return network, {"weights": self.host.weights}
        whole = replace(self, layer=None, kind=None, name="network", control=Control.none)
        fields = DonorKind.decides(whole, slot) | {"name": "network"}
        fields["host"] |= self._host_identity()
        known = {"version": RESULT_VERSION, "spec": fields, "data": images.fingerprint, "precision": backend.precision}
        key = label("network", self.source(), f"seed{self.seed}", digest(known))
        return network, network_cache.trained(
            network, self, images, network_cache.folder_of(outputs, key), known, backend, self.normalization(images)
        )

    def _host_identity(self) -> dict[str, Any]:
        """What of the network's trained weights decides the layer's."""
        pretrained = None if self.is_trained else pretrained_hosts.identity(self.host)
        return {"weights": weights.fingerprint(self.host), "pretrain": pretrained, "head": None}

    def normalization(self, images: ImageData) -> Normalization:
        """That of the network's weights, where it has some."""
        from layergraft.data.normalization import chosen

        known = pretrained_hosts.normalization(pretrained_hosts.untrained(self.host) if self.is_trained else self.host)
        return chosen(self.data.normalize, images.train, known)

    def architecture(self, slot: Slot) -> Architecture:
        """Raises UserError where the network has no such layer."""
        from layergraft.hosts.meta_device import meta_host

        data = self.images(slot)
        site = self.site(data, slot)
        own = site.architecture
        if self.kind == Stem.kind:
            if not isinstance(own, Conv) or site.norm is None:
                raise UserError(f"{site.path} of {self.host.name} is no convolution with a norm after it: no stem")
            return Stem(own, norm_name(meta_host(self.host, data.shape, data.num_classes).get_submodule(site.norm)))
        if self.kind not in (None, own.kind):
            raise UserError(f"{site.path} of {self.host.name} is a {own.kind}, but donor.kind={self.kind}")
        return own

    def site(self, data: ImageData, slot: Slot) -> Site:
        """Where in the network the layer is."""
        from layergraft.hosts.meta_device import sites_of

        sites = sites_of(self.host, data.shape, data.num_classes)
        wanted = self.layer or slot.path
        if wanted not in sites:
            raise unknown(f"layer of {self.host.name} in donor.layer:", wanted, sites)
        return sites[wanted]
