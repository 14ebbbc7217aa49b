"""What kinds of donors say for themselves: those of other packages too."""

from dataclasses import dataclass, replace

import pytest
import torch
from omegaconf import MISSING
from safetensors.torch import save_file

from conftest import TINY
from layergraft.config.data_schema import DataSpec
from layergraft.config.registry import register
from layergraft.data import Digits
from layergraft.donors.controls import Control, LearnedDonor
from layergraft.hosts import CifarResNet
from layergraft.runs.build import get_donors
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute


@register("donor", "brightness")
@dataclass
class Brightness(LearnedDonor):
    """As another package may have it: filters that are as bright as the source's images, and no word of how it saw them."""

    name: str = "brightness"
    data: DataSpec = MISSING

    def source(self):
        return self.data.name

    def architecture(self, slot):
        return slot.conv()

    def make(self, slot):
        layer = self.architecture(slot).build()
        with torch.no_grad():
            layer.weight.mul_(self.images(slot).train.x_NCHW.mean() / 255)
        return layer


@pytest.fixture
def tiny(config, tmp_path):
    """Function: the config of a run with a donor of that kind, at a site of other channels than the images'."""

    def made(**keys):
        overrides = ["host=resnet8", "site=late", "strategy=full", "donor=random", *TINY[:2], *TINY[3:]]
        run = config(*overrides, f"exec.outputs={tmp_path}", "exec.similarity.resamples=2")
        return replace(run, donor=Brightness(data=Digits(classes=[5, 6, 7, 8, 9]), **keys))

    return made


def test_a_donor_that_learns_and_does_not_say_how_is_measured_on_fixed_features_alone(tiny):
    record = execute(plan_run(tiny()))
    assert record.status == "completed", record.traceback
    assert set(record.similarity["fixed"]) == {"frechet", "a_distance", "leep", "logme"}
    assert record.similarity["site"] == {}
    assert record.kinds["donor"] == "brightness"


def test_a_control_wraps_it(tiny):
    (plain,), (permuted,) = (
        get_donors(plan_run(tiny(control=control))) for control in (Control.none, Control.permuted)
    )
    assert permuted.provenance["control_of"] == plain.key != permuted.key and ".permuted." in permuted.key
    flat, shuffled = (donor.layer.weight.flatten(1) for donor in (plain, permuted))
    assert torch.equal(flat.sort(1).values, shuffled.sort(1).values) and not torch.equal(flat, shuffled)


def test_its_source_is_in_its_key(tiny):
    other = replace(tiny(), donor=Brightness(data=Digits(classes=[5, 6, 7])))
    assert plan_run(tiny()).donor_keys != plan_run(other).donor_keys


def test_a_rerun_leaves_the_file_of_weights_where_it_is(config, tmp_path):
    file = tmp_path / "host.safetensors"
    save_file(CifarResNet("resnet8", width=4).build((1, 8, 8), 5, seed=1).state_dict(), file)
    run = config("host=resnet8", f"host.weights={file}", "donor=self", "strategy=full", "exec.rerun=true", *TINY[:2], *TINY[3:],
                 f"exec.outputs={tmp_path}")  # fmt: skip
    for _ in range(2):
        (donor,) = get_donors(plan_run(run))
        assert file.is_file() and donor.provenance["weights"] == str(file)


def test_a_network_that_is_gone_is_trained_again(config, tmp_path):
    import shutil

    run = config(*TINY, "host=resnet8", "strategy=freeze", f"exec.outputs={tmp_path}", "exec.similarity.resamples=2")
    first = execute(plan_run(run))
    for folder in ("networks", "similarity", "runs"):
        shutil.rmtree(tmp_path / folder)
    again = execute(plan_run(run))
    assert again.similarity == first.similarity and again.metrics == first.metrics
