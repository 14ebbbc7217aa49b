"""Donors by formula: Gabor banks and the components of patches."""

import pytest
import torch

from conftest import CPU, GREY
from layergraft.data import Digits
from layergraft.data.normalization import Normalization, Normalize
from layergraft.donors import GaborDonor, PatchDonor
from layergraft.donors.analytic import gabor_bank, patches_of
from layergraft.donors.donor_cache import get_or_create
from layergraft.errors import UserError
from layergraft.hosts.layer_architectures import Conv, Slot


def slot(outs=8, kernel_size=5, ins=1):
    return Slot("conv1", Conv(ins, outs, kernel_size, 1, kernel_size // 2), GREY)


@pytest.mark.parametrize("number, size", [(4, 3), (16, 5), (64, 7)])
def test_gabor_filters_have_zero_mean_and_are_all_different(number, size):
    bank = gabor_bank(number, size)
    assert bank.shape == (number, size, size)
    torch.testing.assert_close(bank.mean((1, 2)), torch.zeros(number, dtype=torch.float64), atol=1e-12, rtol=0)
    unit = bank.flatten(1) / bank.flatten(1).norm(dim=1, keepdim=True)
    assert ((unit @ unit.T).triu(1) < 0.9999).all()
    assert gabor_bank(64, 3).flatten(1).norm(dim=1).min() > 0.1  # however many: none is empty


def test_a_gabor_filter_answers_to_its_own_orientation():
    bank = gabor_bank(16, 7)  # 8 orientations, even and odd
    x = torch.arange(7.0, dtype=torch.float64)
    stripes = torch.cos(2 * torch.pi * x / 7).expand(7, 7)  # they vary along x: orientation 0
    energy = torch.stack([(bank[2 * i : 2 * i + 2] * stripes).sum((1, 2)).square().sum() for i in range(8)])
    assert energy.argmax() == 0 and energy[4] < 0.2 * energy[0]  # 4: orthogonal


def test_gabor_is_the_same_in_each_channel_and_scaled_as_a_random_start(tmp_path):
    layer = get_or_create(GaborDonor(), slot(outs=32, kernel_size=7, ins=3), CPU, tmp_path).layer
    assert torch.equal(layer.weight[:, 0], layer.weight[:, 2])
    assert layer.weight.flatten(1).norm(dim=1).square().mean().item() == pytest.approx(2 * 3 / 32, rel=1e-4)
    assert get_or_create(GaborDonor(seed=1), slot(), CPU, tmp_path).provenance["key"] == get_or_create(GaborDonor(seed=2), slot(), CPU, tmp_path).provenance["key"]  # fmt: skip


def test_pca_filters_are_the_components_of_the_patches(tmp_path):
    """A second implementation: scikit-learn's."""
    from sklearn.decomposition import PCA

    spec, train = PatchDonor("pca", data=Digits()), Digits().load(0).train
    weight = get_or_create(spec, slot(outs=12, kernel_size=3), CPU, tmp_path).layer.weight.detach().double().flatten(1)
    theirs = torch.from_numpy(PCA().fit(patches_of(train, 3, 0, Normalization.of(train)).numpy()).components_)
    unit = weight / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        (unit[:9] * theirs).sum(1).abs(), torch.ones(9, dtype=torch.float64), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(unit[9:], -unit[:3])  # then the negatives of the first


def test_whitening_filters_make_the_sources_responses_white(tmp_path):
    data = Digits(classes=[0, 1, 2])
    layer = get_or_create(PatchDonor("whitening", data=data), slot(outs=9, kernel_size=3), CPU, tmp_path).layer
    train = data.load(0).train
    x = Normalize(Normalization.of(train), torch.device("cpu"))(torch.from_numpy(train.x_NCHW))
    layer.padding = (0, 0)
    covariance = torch.cov(layer(x).detach().transpose(0, 1).flatten(1))
    torch.testing.assert_close(
        covariance, torch.eye(9), atol=0.1, rtol=0
    )  # patches are a sample, EPSILON takes a little


@pytest.mark.parametrize(
    "spec, where, message",
    [
        (PatchDonor("pca", data=Digits()), slot(outs=64, kernel_size=3), "donor=pca has 18 filters at most"),
        (PatchDonor("pca", data=Digits()), slot(kernel_size=9), "patches of 9 pixels are larger than the images"),
        (GaborDonor(), slot(kernel_size=1), "a Gabor filter needs a kernel of 3 x 3 or more"),
    ],
)
def test_what_has_no_formula_is_said(spec, where, message, tmp_path):
    with pytest.raises(UserError, match=message):
        get_or_create(spec, where, CPU, tmp_path)
    with pytest.raises(UserError, match="is always a convolution"):
        type(spec)(**{**vars(spec), "kind": "block"}).check("donor")
