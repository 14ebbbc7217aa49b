"""Surgery: a donor in its place, the host as it was."""

import pytest
import torch
from torch import nn

from layergraft.errors import UserError
from layergraft.hosts import TorchvisionResNet, sites
from layergraft.surgery import replace

HOST = TorchvisionResNet("resnet18", width=4, stem="small")


def test_own_layer_leaves_the_logits_bit_identical_at_every_site():
    host = HOST.build((1, 16, 16), 5, seed=0).eval()
    x = torch.randn(2, 1, 8, 8)
    for path, layer in sites.convolutions(host).items():
        assert torch.equal(replace(host, path, layer)(x), host(x)), path


def test_host_and_donor_stay_as_they_were():
    host, donor = HOST.build((1, 16, 16), 5, seed=0), nn.Conv2d(1, 4, 3, padding=1, bias=True)
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    grafted = replace(host, "conv1", donor)
    assert torch.equal(grafted.conv1.weight, donor.weight) and torch.equal(grafted.conv1.bias, donor.bias)
    with torch.no_grad():
        for parameter in grafted.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())
    assert not torch.equal(grafted.conv1.weight, donor.weight)


@pytest.mark.parametrize(
    "donor",
    [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(1, 4, 5, padding=1), nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(1, 4, 3)],
)  # fmt: skip
def test_a_donor_that_does_not_fit_is_refused_with_both_shapes(donor):
    with pytest.raises(
        UserError,
        match=r"does not fit conv1: the donor is .*; the site takes 1 -> 4 channels, kernel 3 x 3, stride 1, padding 1$",
    ):
        replace(HOST.build((1, 16, 16), 5, seed=0), "conv1", donor)
