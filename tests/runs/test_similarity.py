"""Similarity: the ladders come out in their order, on fixed features and at the site; it is in each run's record."""

import json

import numpy as np
import pytest
import torch
from tests.conftest import TINY

from layergraft.data import Textures
from layergraft.data.gabor import gabor_features
from layergraft.runs.plan import plan_run
from layergraft.runs.similarity import similarity
from layergraft.runs.train import execute

BETTER_LOW, BETTER_HIGH = ("frechet", "a_distance"), ("leep", "logme")
TEXTURES = ["data=textures", "donor.data=textures", "donor.data.instance=1", "host=resnet8", "data.per_class=72",
            "donor.data.per_class=72", "exec.similarity.resamples=4", *TINY[1:]]  # fmt: skip


def measured(config, tmp_path, *overrides):
    run = config(*TEXTURES, f"exec.outputs={tmp_path}", *overrides)
    return similarity(plan_run(run).build())


@pytest.mark.slow
def test_the_dial_is_recovered_by_every_measure(config, tmp_path):
    ladder = [measured(config, tmp_path, f"donor.data.dial={dial}") for dial in (0.0, 0.3, 1.0)]
    for where in ("fixed", "site"):
        parts = [found["fixed"] if where == "fixed" else found["site"]["conv1"] for found in ladder]
        for name in BETTER_LOW + BETTER_HIGH:
            values = [part[name]["mean"] for part in parts]
            assert all(np.diff(values) > 0 if name in BETTER_LOW else np.diff(values) < 0), (where, name, values)
            assert all(part[name]["resamples"] == 4 and part[name]["deviation"] > 0 for part in parts)
    assert ladder[0]["fixed"]["a_distance"]["mean"] < 0.3  # two instances of the same statistics cannot be told apart


def test_halves_with_a_meaning_are_further_apart_than_random_ones():
    def distance(**fields):
        halves = [Textures(half=half, per_class=30, size=16, **fields).load(0).train for half in "AB"]
        features = [gabor_features(part.images()) for part in halves]
        from layergraft.metrics.distances import frechet_distance

        return frechet_distance(*features)

    random = [distance(halves_seed=seed) for seed in range(8)]
    assert distance(halves="semantic") > np.mean(random)


def test_what_the_site_sees_is_what_the_donor_saw_where_host_and_donor_have_the_same_images(config, tmp_path):
    same = ["donor=pca", "donor.data=textures", "donor.data.instance=0", "host.width=4"]
    run = config(*TEXTURES[:1], *same, "host=resnet8", "data.per_class=72", "donor.data.per_class=72", *TINY[3:],
                 f"exec.outputs={tmp_path}", "exec.similarity.resamples=3", "exec.similarity.images=9999")  # fmt: skip
    found = similarity(plan_run(run).build())
    # Both look at the image itself: resamples of one set.
    assert found["site"]["conv1"]["frechet"]["mean"] < 0.1 and abs(found["site"]["conv1"]["a_distance"]["mean"]) < 0.3
    assert found["target test images in source train"]["exact"] == 0


def test_it_is_in_the_record_and_measured_once_for_all_strategies(config, tmp_path):
    runs = [config(*TINY, f"exec.outputs={tmp_path}", f"strategy={name}") for name in ("freeze", "full")]
    records = [execute(plan_run(run)) for run in runs]
    assert set(records[0].similarity) == {"fixed", "images", "target test images in source train", "site"}
    assert records[0].similarity == records[1].similarity
    assert len(list((tmp_path / "similarity").iterdir())) == 2
    assert records[0].similarity["images"] == [299, 100]
    data = records[0].data
    assert data["images"] == {"train": 100, "val": 151, "test": 451} and data["test images in train"]["exact"] == 0
    kept = tmp_path / "data" / data["key"]
    rows = np.load(kept / "split.npz")
    loaded = runs[0].data.load(0)
    assert all(np.array_equal(rows[name], split.rows) for name, split in loaded.splits.items())
    assert json.loads((kept / "data.json").read_text()) == data


@pytest.mark.parametrize("donor", ["random", "gabor", "none"])
def test_a_donor_that_learns_from_no_images_has_no_source(donor, config, tmp_path):
    tiny = [o for o in TINY if "donor" not in o]
    run = plan_run(config("strategy=freeze", *tiny, f"donor={donor}", f"exec.outputs={tmp_path}"))
    assert execute(run).similarity is None


@pytest.mark.parametrize("donor", ["trained", "end_to_end", "self", "pca", "permuted"])
@pytest.mark.parametrize("more", [["site=early"], ["site=late"]])
def test_every_donor_that_learns_has_a_source_seen_again(donor, more, config, tmp_path):
    if donor == "pca" and more == ["site=late"]:
        more = ["site=early", "host.width=16"]
    trains = [] if donor == "pca" else ["donor.schedule.epochs=1"]
    run = config("host=resnet8", "host.width=8", "strategy=freeze", "schedule.epochs=1", "exec.device=cpu", *trains, f"donor={donor}", *more,
                 f"exec.outputs={tmp_path}", "exec.similarity.resamples=2")  # fmt: skip
    found = similarity(plan_run(run).build())
    (site,) = found["site"].values()
    assert set(site) == {"frechet", "a_distance", "leep", "logme"}
    assert all(np.isfinite(value["mean"]) for value in site.values())


def test_the_command_prints_both(command, tmp_path):
    code, out, err = command("similarity", "donor.data=digits_5_to_9", *TINY, f"exec.outputs={tmp_path}")
    assert code == 0, err
    assert "source digits_5_to_9, target digits_0_to_4: 299 and 100 training images" in out
    for word in ("Frechet distance", "proxy A-distance", "LEEP", "LogME", "on fixed features", "at conv1", "±"):
        assert word in out
    code, _, err = command("similarity", "donor=random", f"exec.outputs={tmp_path}")
    assert code == 2 and "donor=random learns from no images" in err


def test_features_are_of_any_size_and_channels_and_of_each_image_alone():
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 20, 20), np.uint8)
    assert gabor_features(x).shape == gabor_features(x[:, :1, :9, :9]).shape == (5, 300)
    torch.testing.assert_close(gabor_features(x)[2:3], gabor_features(x[2:3]), rtol=1e-4, atol=1e-5)


def test_a_corrupted_target_is_another_target(config, tmp_path):
    plain, noisy = (measured(config, tmp_path, f"data.corrupt.noise={severity}") for severity in (0, 5))
    for name in BETTER_LOW:
        assert noisy["fixed"][name]["mean"] > plain["fixed"][name]["mean"]
