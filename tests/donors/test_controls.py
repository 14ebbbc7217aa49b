"""Controls: what each keeps of a donor, and what it takes away."""

import pytest
import torch

from conftest import CPU, GREY
from layergraft.config.training_schema import ScheduleSpec
from layergraft.data import Digits
from layergraft.donors import TrainedDonor
from layergraft.donors.controls import CONTROLS, Control, without
from layergraft.donors.donor_cache import get_or_create
from layergraft.hosts.layer_architectures import Conv, Slot
from layergraft.hosts.resnets import Block

FILTERS = torch.randn(64, 16, 3, 3, generator=torch.Generator().manual_seed(0)).cumsum(3) + 0.3  # neighbours alike


def drawn(control, seed=0):
    return CONTROLS[control](FILTERS, torch.Generator().manual_seed(seed))


def test_permuted_keeps_the_values_of_each_filter():
    new = drawn(Control.permuted)
    assert torch.equal(new.flatten(1).sort(1).values, FILTERS.flatten(1).sort(1).values) and not torch.equal(
        new, FILTERS
    )


def test_moments_keep_mean_and_deviation_of_each_filter():
    new = drawn(Control.moments)
    torch.testing.assert_close(new.flatten(1).mean(1), FILTERS.flatten(1).mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(new.flatten(1).std(1), FILTERS.flatten(1).std(1), rtol=1e-4, atol=1e-5)


def kernel_covariance(w):
    return torch.cov(w.flatten(2).flatten(0, 1).T)


def test_covariance_keeps_the_covariance_of_the_kernels_which_the_others_lose():
    wanted = kernel_covariance(FILTERS)
    large = CONTROLS[Control.covariance](FILTERS.repeat(40, 1, 1, 1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(kernel_covariance(large), wanted, rtol=0.05, atol=0.05)
    assert large.mean().item() == pytest.approx(FILTERS.mean().item(), abs=0.02)
    for control in (Control.permuted, Control.moments):
        off = kernel_covariance(drawn(control)) - wanted
        assert off.abs().max() > 0.5  # neighbours are no longer alike


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_is_a_function_of_its_seed(control):
    assert torch.equal(drawn(control, 1), drawn(control, 1)) and not torch.equal(drawn(control, 1), drawn(control, 2))


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("shape", [(8, 4, 1, 1), (8, 1, 1, 1), (1, 1, 3, 3)])
def test_small_filters_stay_finite(control, shape):
    assert CONTROLS[control](torch.randn(shape), torch.Generator().manual_seed(0)).isfinite().all()


def test_every_convolution_of_a_block_is_controlled_and_norms_stay():
    block = Block("bottleneck", 8, 4, 16, 1, shortcut="conv").build()
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    after = without(block, Control.permuted, 0).state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"conv1.weight", "conv2.weight", "conv3.weight", "downsample.0.weight"}


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_is_made_of_the_trained_donor_which_is_trained_once(control, tmp_path):
    spec = TrainedDonor(data=Digits(classes=[5, 6]), schedule=ScheduleSpec(epochs=1))
    slot = Slot("conv1", Conv(1, 4, 3, 1, 1), GREY)
    plain = get_or_create(spec, slot, CPU, tmp_path)
    spec.control = control
    made = get_or_create(spec, slot, CPU, tmp_path)
    assert made.provenance["control_of"] == plain.provenance["key"] and f".{control.name}." in made.provenance["key"]
    torch.testing.assert_close(made.layer.weight, without(plain.layer, control, 0).weight, rtol=0, atol=0)
    assert len([path for path in (tmp_path / "donors").iterdir() if path.is_dir()]) == 2
