"""What a donor saw when it was trained: the source's images as they reach the layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layergraft.donors.analytic import PatchDonor
from layergraft.donors.cache import NETWORK, AnyDonor, Donor, images_of, source_data
from layergraft.donors.end_to_end import EndToEndDonor
from layergraft.donors.forms import Place
from layergraft.donors.trained import TrainedDonor

if TYPE_CHECKING:
    from torch import nn

    from layergraft.data.images import ImageData


def source_of(spec: AnyDonor, place: Place) -> ImageData | None:
    """The images that `spec` learns from, None where it learns from none."""
    return spec.images(place) if isinstance(spec, PatchDonor) else source_data(spec, place)


def single_layer_network(spec: AnyDonor, place: Place, donor: Donor, outputs: Path) -> tuple[nn.Module, nn.Module]:
    """The network that the donor was trained in, as it was when training ended, and the layer in it.

    A control's is the one of the donor whose weights it has lost; filters of patches stand on the image itself.
    """
    from safetensors.torch import load_file
    from torch import nn

    known = donor.provenance
    if isinstance(spec, TrainedDonor):
        data = images_of(spec, place)
        network, layer = spec.network(spec.form(place), data.channels, data.num_classes)
        network.load_state_dict(load_file(outputs / "donors" / known.get("control_of", known["key"]) / NETWORK))
        return network, layer
    if isinstance(spec, EndToEndDonor):
        data = images_of(spec, place)
        network = spec.network(data.shape, data.num_classes)
        if spec.is_trained:
            network.load_state_dict(load_file(outputs / "donors" / _network_of(known, outputs) / NETWORK))
        return network, network.get_submodule(spec.site(data, place).path)
    return nn.Sequential(donor.layer), donor.layer


def _network_of(known: dict[str, Any], outputs: Path) -> str:
    """The folder of the network that a donor was cut out of."""
    import json

    from layergraft.donors.cache import PROVENANCE

    if "control_of" in known:
        known = json.loads((outputs / "donors" / known["control_of"] / PROVENANCE).read_text())
    return str(known["network"])
