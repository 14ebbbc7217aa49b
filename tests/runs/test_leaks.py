"""Donors and hosts that have seen images which the run is judged by: refused, or allowed and told."""

import json

import numpy as np
import pytest

from conftest import SMALLEST, TINY
from layergraft.report.table import read
from layergraft.runs.plan import plan_run
from layergraft.runs.train import train
from layergraft.store.records import RunRecord
from layergraft.sweeps import execution

LEAK = ["data=digits_0_to_4", "host=resnet8", "strategy=freeze", "donor.data=digits", "donor.data.split_seed=1", "donor.data.train_size=50",
        *TINY, "exec.similarity.resamples=0"]  # fmt: skip
SAID = "the donor's training split has "


def test_a_leak_is_one_line_before_any_training_and_the_advice_works(command, config, tmp_path):
    code, _, err = command("train", *LEAK, f"exec.outputs={tmp_path}")
    assert code == 2 and err.startswith(f"error: donor.data: {SAID}") and err.count("\n") == 1
    assert "to separate them give data.split_seed=0 donor.data.split_seed=0; exec.allow_leak=true does" in err
    assert not any(tmp_path.iterdir())
    plan_run(config(*LEAK, "data.split_seed=0", "donor.data.split_seed=0"))


def test_allowed_it_is_told_at_the_start_in_the_record_and_in_the_report(command, tmp_path):
    code, _, err = command("train", *LEAK, f"exec.outputs={tmp_path}", "exec.allow_leak=true")
    assert code == 0 and f"warning:     {SAID}" in err
    (path,) = (tmp_path / "runs").glob("*/record.json")
    (note,) = json.loads(path.read_text())["notes"]
    assert note.startswith(SAID) and note.endswith("(exec.allow_leak=true)")
    assert read([tmp_path / "runs"]).warnings == [note]


def test_images_that_a_set_has_in_two_splits_are_a_warning(command, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"{part}_images": rng.integers(0, 256, (40, 8, 8), np.uint8) for part in ("train", "val", "test")}
    arrays |= {f"{part}_labels": np.arange(40) % 2 for part in ("train", "val", "test")}
    arrays["test_images"][:3] = arrays["train_images"][7]
    np.savez(tmp_path / "set.npz", **arrays)
    npz = ["data=npz", f"data.path={tmp_path / 'set.npz'}", "data.corrupt.noise=3", "data.corrupt.splits=[test]"]
    code, _, err = command("train", *npz, *SMALLEST, f"exec.outputs={tmp_path / 'outputs'}")
    said = "3 of the 40 test images of npz are in its training split too, pixel by pixel"
    assert code == 0 and f"warning:     {said}" in err
    assert read([tmp_path / "outputs" / "runs"]).warnings == [f"{said}: the set has them twice"]


def test_a_sweep_tells_it_once(config, tmp_path, monkeypatch, capsys):
    plans = [
        plan_run(
            config(*LEAK, "donor.data.split_seed=9", f"seed={seed}", "exec.allow_leak=true", f"exec.outputs={tmp_path}")
        )
        for seed in (0, 1)
    ]

    def stop(*_):
        raise StopIteration

    monkeypatch.setattr(execution, "devices", stop)  # after all that is told at the start
    with pytest.raises(StopIteration):
        execution.run(plans)
    assert capsys.readouterr().err.count("\n") == 1 and all(SAID in note for plan in plans for note in plan.notes)


@pytest.mark.parametrize("fixed, leaks", [
    (["donor.seed=0", "seed=1"], True),  # the donor's split is another's test images
    (["donor.seed=0", "seed=1", "data.split_seed=3", "donor.data.split_seed=3"], False),
    (["donor.data=digits_a", "donor.seed=0", "seed=1", "data=digits_b_blurred", "host.pretrain.data=digits_a", "host.pretrain.seed=5"], False),
    (["donor=self", "seed=4"], False),
    (["donor=self", "seed=4", "donor.seed=0"], True),
    (["donor=self", "seed=4", "donor.seed=0", "data.split_seed=0"], False),
    (["donor=permuted", "donor.seed=0", "seed=1"], True),
    (["donor=random", "donor.seed=0", "seed=1"], False),
    (["donor=end_to_end", "donor.tune=false", "donor.data=digits", "donor.seed=0", "seed=1",
      "+host@donor.host=resnet8", "+data@donor.host.pretrain.data=digits", "donor.host.pretrain.seed=2"], True),
])  # fmt: skip
def test_seeds_that_draw_other_splits(fixed, leaks, config):
    base = ["data=digits", "host.pretrain.data=none", "host=resnet8"]
    given = {choice.partition("=")[0] for choice in fixed}
    asked = [*(choice for choice in base if choice.partition("=")[0] not in given), *fixed, "exec.allow_leak=true"]
    assert any("split has" in note for note in plan_run(config(*asked)).notes) == leaks


def test_the_key_holds_the_split_that_is_used(config):
    def plan(*overrides):
        return plan_run(config("host=resnet8", *overrides))

    same = [plan(*fixed) for fixed in ([], ["data.split_seed=0"], ["data.few_shot_seed=0", "donor.data.split_seed=0"])]
    assert len({one.key for one in same}) == len({one.donor_keys for one in same}) == 1
    other = plan("data.split_seed=1", "donor.data.split_seed=1")
    assert other.key != same[0].key and other.donor_keys != same[0].donor_keys
    assert plan("exec.allow_leak=true").key == same[0].key


def test_initial_weights_and_order_have_keys_of_their_own(config):
    def key(*overrides):
        return plan_run(config("host=resnet8", *overrides)).key

    assert key() == key("init_seed=0") == key("order_seed=0")
    assert len({key(), key("init_seed=1"), key("order_seed=1")}) == 3


def test_a_fixed_seed_fixes_initial_weights_and_order(config, tmp_path):
    small = ["host=resnet8", "host.width=2", "donor=none", "strategy=full", "schedule.epochs=1", "exec.probe.epochs=[]",
             "data.split_seed=0", "data.few_shot_seed=0", "exec.threads=1", f"exec.outputs={tmp_path}"]  # fmt: skip

    def weights(*overrides):
        built = plan_run(config(*small, *overrides)).build()
        return built.network.state_dict()

    first, other = weights("seed=1", "init_seed=0"), weights("seed=2", "init_seed=0")
    assert all((first[name] == other[name]).all() for name in first)
    assert any((weights("seed=1")[name] != first[name]).any() for name in first)

    def loss(*overrides):
        plan = plan_run(config(*small, "init_seed=0", *overrides))
        return train(plan.build(), RunRecord(plan.key, "completed")).metrics["val/loss"]

    assert loss("seed=1", "order_seed=0") == loss("seed=2", "order_seed=0") != loss("seed=1")
