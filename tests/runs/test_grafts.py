"""Runs with every kind of donor and surgery, from the config to the record."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import TINY
from layergraft.errors import UserError
from layergraft.hosts import CifarResNet
from layergraft.runs.build import get_donors
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute
from layergraft.store.records import run_folder

HOST = ["host=resnet8", "host.width=4", "schedule.epochs=2", "optim.batch_size=25", "exec.device=cpu", "exec.threads=1"]
EPOCHS = "donor.schedule.epochs=1"
ARMS = {
    "random block": ["donor=random", "donor.kind=block", "site=middle", "strategy=full"],
    "random stage": ["donor=random", "site=layer2", "strategy=full"],
    "trained stem": ["donor=trained", "donor.kind=stem", "site=early", EPOCHS],
    "trained block": ["donor=trained", "site=layer3.0", "strategy=freeze", EPOCHS],
    "moment matched": ["donor=moment_matched", "site=0.5", "strategy=freeze", EPOCHS],
    "permuted": ["donor=permuted", "site=late", "strategy=freeze", EPOCHS],
    "covariance": ["donor=covariance", "site=late", "strategy=freeze", EPOCHS],
    "self": ["donor=self", "site=layer2.0.conv2", "strategy=freeze"],
    "end to end": ["donor=end_to_end", "site=late", "strategy=low_lr", EPOCHS],
    "gabor": ["donor=gabor", "site=early", "strategy=freeze"],
    "pca": ["donor=pca", "site=early", "strategy=freeze"],
    "whitening": ["donor=whitening", "site=early", "strategy=freeze"],
    "extracted": ["donor=extracted", "donor.path=FILE", "site=layer2.0.conv1", "strategy=freeze"],
    "two sites": ["donor=random", "site=[conv1,layer2.0]", "strategy=freeze"],
    "two names": ["donor=random", "site=[early,late]", "strategy=freeze"],
    "another kernel": ["donor=random", "donor.kind=conv", "site=layer1.0", "strategy=freeze", "surgery.bias=drop"],
    "projected": ["donor=extracted", "donor.path=FILE", "donor.layer=conv1", "site=late", "strategy=freeze", "surgery.channel_matching=project"],
    "gated insert": ["donor=random", "site=layer1.0", "strategy=full", "surgery=insert", "surgery.gate=0", "surgery.calibrate=lsuv"],
    "branch": ["donor=random", "site=layer2.0.conv1", "strategy=low_lr", "surgery=parallel"],
    "moments": ["donor=random", "site=middle", "strategy=hybrid", "surgery.calibrate=moments"],
    "re-estimated": ["donor=random", "site=middle", "strategy=freeze", "surgery.calibrate=batch_norm"],
    "weights": ["donor=gabor", "site=early", "strategy=freeze", "host.weights=FILE"],
    "self with weights": ["donor=self", "site=late", "strategy=freeze", "host.weights=FILE"],
    "grey to colour": ["donor=random", "site=early", "strategy=freeze", "host.in_channels=3"],
    "plain group norm": ["donor=random", "site=layer2.0", "strategy=freeze", "host.norm=group", "host.skips=false"],
}  # fmt: skip


@pytest.fixture
def arm(config, tmp_path):
    """Function: the name of an arm -> its Config."""
    save_file(CifarResNet("resnet8", width=4).build((1, 8, 8), 5, seed=7).state_dict(), tmp_path / "net.safetensors")

    def make(name, *more):
        overrides = [override.replace("FILE", str(tmp_path / "net.safetensors")) for override in ARMS[name]]
        return config(*HOST, *overrides, f"exec.outputs={tmp_path / 'out'}", *more)

    return make


@pytest.mark.parametrize("name", ARMS)
def test_every_kind_of_graft_trains_and_what_is_frozen_stays(name, arm):
    config = arm(name)
    start = plan_run(config).build()
    record = execute(start.plan)
    assert record.status == "completed", record.traceback
    assert [graft.site for graft in record.grafts] == [graft.site.path for graft in start.grafted.grafts]
    assert all(graft.did for graft in record.grafts) and len(record.donors) == len(record.grafts)
    state = load_file(run_folder(Path(config.exec.outputs), record.key) / "model.safetensors")
    frozen = [path for path in start.grafted.roles["graft"]] if config.strategy.name == "freeze" else []
    for tensor_name, tensor in start.network.state_dict().items():
        if any(tensor_name == path or tensor_name.startswith(path + ".") for path in frozen):
            assert torch.equal(state[tensor_name], tensor), tensor_name
    moved = {n for n, _ in start.network.named_parameters() if not torch.equal(state[n], start.network.state_dict()[n])}
    assert {*start.grafted.parts["adapter"], *start.grafted.parts["head"]} <= moved


def test_the_key_follows_surgery_and_the_content_of_files(arm, tmp_path):
    def key(name, *more):
        return plan_run(arm(name, *more)).key

    base = key("extracted")
    other = {
        key("extracted", "surgery.bias=drop"),
        key("extracted", "surgery.calibrate=batch_norm"),
        key("projected"),
        key("weights"),
    }
    assert base not in other and len(other) == 4
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((tmp_path / "net.safetensors").read_bytes())
    assert key("weights") == key("weights", f"host.weights={copy}")
    assert key("extracted").rpartition(".")[2] == key("extracted", f"donor.path={copy}").rpartition(".")[2]
    save_file(CifarResNet("resnet8", width=4).build((1, 8, 8), 5, seed=8).state_dict(), tmp_path / "copy.safetensors")
    assert key("weights") != key("weights", f"host.weights={copy}")


def test_controls_are_made_of_the_very_donor_that_they_control(config, tmp_path):
    def donor(name):
        return get_donors(plan_run(config(*TINY, "strategy=freeze", f"donor={name}", f"exec.outputs={tmp_path}")))[
            0
        ].provenance

    trained = donor("trained")["key"]
    assert {donor(name)["control_of"] for name in ("moment_matched", "permuted", "covariance")} == {trained}
    assert len([path for path in (tmp_path / "donors").iterdir() if path.is_dir()]) == 4


def test_what_does_not_act_is_not_in_the_key(config):
    def key(*more):
        return plan_run(config(*TINY, "strategy=freeze", *more)).key

    base = key()
    for idle in ("surgery.images=7", "surgery.adapter_init=random", "surgery.name=mine", "site=[early]"):
        assert key(idle) == base
    assert len({key("surgery.calibrate=moments", f"surgery.images={n}") for n in (7, 8)} | {base}) == 3


def test_an_extracted_donor_is_checked_before_any_run(arm, tmp_path):
    config = arm("extracted", "donor.layer=layer2.0", "site=layer2.0")
    state = load_file(tmp_path / "net.safetensors")
    state.pop("layer2.0.bn2.weight")
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(UserError, match="missing: bn2.weight"):
        plan_run(config)


def test_end_to_end_is_trained_on_the_source_even_in_a_host_with_weights(arm):
    own, end_to_end = (
        plan_run(arm("self with weights", *more)).build().network for more in ([], ["donor=end_to_end", EPOCHS])
    )
    assert not torch.equal(own.layer3[0].conv2.weight, end_to_end.layer3[0].conv2.weight)


def test_self_is_the_layer_of_a_host_that_was_trained_on_the_target(arm):
    run = plan_run(arm("self")).build()
    metrics = run.donors[0].provenance["metrics"]
    assert (
        run.donors[0].provenance["network"].startswith("network.resnet8-digits_0_to_4.seed0.")
        and metrics["test/acc"] > 0
    )
    init = CifarResNet("resnet8", width=4).build((1, 8, 8), 5, seed=0)
    assert not torch.equal(run.network.layer2[0].conv2.weight, init.layer2[0].conv2.weight)
    assert torch.equal(
        run.network.layer2[0].conv1.weight, init.layer2[0].conv1.weight
    )  # the rest is the run's own start


def test_self_of_a_host_with_weights_changes_nothing(arm):
    run = plan_run(arm("self with weights")).build()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(run.network.eval()(x), run.grafted.host.eval()(x))


AFFINE = ["layer1.0.conv1.affine.weight", "layer1.0.conv1.affine.bias"]
MOMENTS = ["site=layer1.0.conv1", "surgery.calibrate=moments"]


def test_adapters_learn_even_where_the_layers_around_them_are_frozen(config, tmp_path):
    project = ["surgery.channel_matching=project", "donor.out_channels=3"]
    plan = plan_run(config(*TINY, "strategy=hybrid", *MOMENTS, *project)).strategy
    assert plan.groups["graft"] == ["layer1.0.conv1.donor.weight"]
    assert "layer1.0.conv1.after.weight" in plan.groups["rest"] and plan.groups["rest.calibration"] == AFFINE
    assert all(phase.trains("rest.calibration") for phase in plan.phases)


@pytest.mark.parametrize("learned", [False, True])
def test_calibration_learns_only_where_a_strategy_names_it(learned, config, tmp_path):
    named = ["strategy.groups.new=[head,adapter,calibration]"] if learned else []
    made = config(*TINY, "strategy=head_only", *MOMENTS, *named, f"exec.outputs={tmp_path}")
    start = plan_run(made).build()
    record = execute(start.plan)
    state, before = load_file(run_folder(tmp_path, record.key) / "model.safetensors"), start.network.state_dict()
    assert {torch.equal(state[name], before[name]) for name in AFFINE} == {not learned}
    assert not torch.equal(before[AFFINE[0]], torch.ones_like(before[AFFINE[0]]))  # it was calibrated
    assert not torch.equal(state["fc.weight"], before["fc.weight"])
    group = record.plan["groups"]["new.calibration" if learned else "calibration"]
    assert group["tensors"] == AFFINE and any(map(any, group["lr"])) == learned
    assert record.grafts[0].calibration_paths == ["layer1.0.conv1.affine"] and not record.grafts[0].adapter_paths


def test_donors_of_several_sites_are_shared_with_runs_of_one(config, tmp_path):
    common = [*TINY, "strategy=freeze", f"exec.outputs={tmp_path}"]
    both = plan_run(config(*common, "site=[early,late]")).donor_keys
    assert both == tuple(plan_run(config(*common, f"site={site}")).donor_keys[0] for site in ("early", "late"))
