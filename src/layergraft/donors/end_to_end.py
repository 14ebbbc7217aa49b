"""Donors cut out of a whole network that is trained here, end to end: the co-adapted controls.

`donor=end_to_end` trains the network on the source task; `donor=self` takes the host's own layer, trained on the
target task: the host with its weights, where it comes with some, else the host trained from scratch from another
initialisation (Yosinski et al. 2014, 'selffer' networks, BnB).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from layergraft.donors.forms import Conv, Form, Place, Stem, form_of
from layergraft.errors import UserError, unknown
from layergraft.recipes import OptimSpec, ScheduleSpec
from layergraft.schema import register
from layergraft.seeds import stream
from layergraft.specs import DataSpec, HostSpec, LearnedDonorSpec

if TYPE_CHECKING:
    from torch import nn

    from layergraft.data.images import ImageData
    from layergraft.hosts.sites import Site


@register("donor", "end_to_end")
@dataclass
class EndToEndDonor(LearnedDonorSpec):
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

    def network(self, image: tuple[int, int, int], num_classes: int) -> nn.Module:
        """The network before it is trained, or with the weights it comes with."""
        from layergraft.hosts.weights import pretrained

        return pretrained(self.host, image, num_classes, stream(self.seed, "donor", "host"))

    def form(self, place: Place) -> Form:
        """Raises UserError where the network has no such layer."""
        from layergraft.hosts.skeletons import skeleton

        data: ImageData = self.data.load(self.seed).with_channels(self.host.in_channels)
        network = skeleton(self.host, data.shape, data.num_classes)
        site = self.site(data, place)
        own = form_of(network.get_submodule(site.path))
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

    def cut(self, network: nn.Module, data: ImageData, place: Place) -> nn.Module:
        """The layer out of the trained `network`."""
        site = self.site(data, place)
        layer = network.get_submodule(site.path)
        if self.kind != Stem.kind:
            return layer
        stem = self.form(place).build()
        stem.get_submodule("conv").load_state_dict(layer.state_dict())
        assert site.norm is not None  # else `form` would have refused
        stem.get_submodule("norm").load_state_dict(network.get_submodule(site.norm).state_dict())
        return stem
