"""Donors cut out of a whole network that is trained here, end to end: the co-adapted controls.

`donor=end_to_end` trains the network on the source task; `donor=self` takes the host's own layer, trained on the
target task: the host with its weights, where it comes with some, else the host trained from scratch from another
initialisation (Yosinski et al. 2014, 'selffer' networks, BnB).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from layergraft.config.recipes import OptimSpec, ScheduleSpec
from layergraft.config.registry import register
from layergraft.config.specs import RESULT_VERSION, DataSpec, HostSpec
from layergraft.donors.base import DonorKind
from layergraft.donors.controls import Control, LearnedDonor
from layergraft.donors.forms import Conv, Form, Place, Stem, form_of
from layergraft.errors import UserError, unknown
from layergraft.hosts import weights
from layergraft.networks import kept
from layergraft.seeds import stream
from layergraft.store.files import digest, label

if TYPE_CHECKING:
    from torch import nn

    from layergraft.data.images import ImageData
    from layergraft.donors.cache import Donor
    from layergraft.hosts.sites import Site
    from layergraft.training.fit import Backend


@register("donor", "end_to_end")
@dataclass
class EndToEndDonor(LearnedDonor):
    """The layer of a network, which is trained first unless it comes with `host.weights` and is not to be tuned."""

    name: str = "end_to_end"
    data: DataSpec = MISSING
    host: HostSpec = MISSING
    optim: OptimSpec = MISSING
    schedule: ScheduleSpec = MISSING
    tune: bool = False
    """Train a network that comes with weights, too, from those on."""
    layer: str | None = None
    """The module path in the network; null: the site's own path. A stem is named by its convolution."""

    def source(self) -> str:
        return f"{self.host.name}-{self.data.name}"

    @property
    def is_trained(self) -> bool:
        """Whether the network is trained here, rather than taken with its weights as it is."""
        return self.host.weights is None or self.tune

    def images(self, place: Place) -> ImageData:
        """With the channels that its network takes, whatever the host does."""
        return self.loaded().with_channels(self.host.in_channels)

    def decides(self, place: Place) -> dict[str, Any]:
        fields = super().decides(place)
        fields["layer"] = self.layer or place.path
        fields["host"]["weights"] = weights.fingerprint(self.host)
        if not self.is_trained:  # then its data and its training say nothing
            for name in ("data", "optim", "schedule", *(["seed"] if self.control is Control.none else [])):
                del fields[name]
        return fields

    def build(self, place: Place, backend: Backend, outputs: Path) -> tuple[nn.Module, dict[str, Any]]:
        """Every site cuts from the same network, which is kept under a key of its own."""
        network, facts = self._trained(place, backend, outputs)
        site = self.site(self.images(place), place)
        layer = network.get_submodule(site.path)
        if self.kind != Stem.kind:
            return layer, facts
        stem = self.form(place).build()
        stem.get_submodule("conv").load_state_dict(layer.state_dict())
        assert site.norm is not None  # else `form` would have refused
        stem.get_submodule("norm").load_state_dict(network.get_submodule(site.norm).state_dict())
        return stem, facts

    def saw(self, place: Place, donor: Donor, backend: Backend, outputs: Path) -> tuple[nn.Module, nn.Module]:
        network, _ = self._trained(place, backend, outputs)
        return network, network.get_submodule(self.site(self.images(place), place).path)

    def _trained(self, place: Place, backend: Backend, outputs: Path) -> tuple[nn.Module, dict[str, Any]]:
        """The network that the layer is cut from, and what is known of it."""
        images = self.images(place)
        network = self.network(images.shape, images.num_classes)
        if not self.is_trained:
            return network, {"weights": self.host.weights}
        whole = replace(self, layer=None, kind=None, name="network", control=Control.none)
        fields = DonorKind.decides(whole, place) | {"name": "network"}
        fields["host"]["weights"] = weights.fingerprint(self.host)
        known = {"version": RESULT_VERSION, "spec": fields, "data": images.fingerprint, "precision": backend.precision}
        key = label("network", self.source(), f"seed{self.seed}", digest(known))
        return network, kept.trained(network, self, images, kept.folder_of(outputs, key), known, backend)

    def network(self, image: tuple[int, int, int], num_classes: int) -> nn.Module:
        """The network before it is trained, or with the weights it comes with."""
        return weights.pretrained(self.host, image, num_classes, stream(self.seed, "donor", "host"))

    def form(self, place: Place) -> Form:
        """Raises UserError where the network has no such layer."""
        from layergraft.hosts.skeletons import skeleton

        data = self.images(place)
        site = self.site(data, place)
        own = form_of(skeleton(self.host, data.shape, data.num_classes).get_submodule(site.path))
        if self.kind == Stem.kind:
            if not isinstance(own, Conv) or site.norm is None:
                raise UserError(f"{site.path} of {self.host.name} is no convolution with a norm after it: no stem")
            return Stem(own, self.host.norm)
        if self.kind not in (None, own.kind):
            raise UserError(f"{site.path} of {self.host.name} is a {own.kind}, but donor.kind={self.kind}")
        return own

    def site(self, data: ImageData, place: Place) -> Site:
        """Where in the network the layer is."""
        from layergraft.hosts.skeletons import sites_of

        sites = sites_of(self.host, data.shape, data.num_classes)
        wanted = self.layer or place.path
        if wanted not in sites:
            raise unknown(f"layer of {self.host.name} in donor.layer:", wanted, sites)
        return sites[wanted]
