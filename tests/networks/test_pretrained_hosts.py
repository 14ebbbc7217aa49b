"""Hosts that are trained before a donor goes into them: once for each recipe, the same bits for all, and no image of the target."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from conftest import CPU
from layergraft.config.training_schema import OptimSpec, ScheduleSpec
from layergraft.data import Digits
from layergraft.errors import UserError
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.networks import pretrained_hosts
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute
from layergraft.store.records import read_record

# A host that is trained for a moment, and a run of as long.
PRETRAINED = ["data=digits_b_blurred", "host.pretrain.data=digits_a", "host.pretrain.schedule.epochs=2", "host=resnet8",
              "host.width=4", "strategy=full", "site=late", "donor=random", "schedule.epochs=2", "optim.batch_size=25",
              "exec.device=cpu", "exec.similarity.resamples=0"]  # fmt: skip


@pytest.fixture
def run(config, tmp_path):
    """Function: overrides -> the record of such a run, and its network's tensors."""

    def do(*overrides):
        plan = plan_run(config(*PRETRAINED, f"exec.outputs={tmp_path / 'outputs'}", *overrides))
        record = execute(plan)
        assert record.status == "completed", record.error
        return record, load_file(plan.folder / "model.safetensors")

    return do


def networks(outputs):
    return sorted(folder.name for folder in (outputs / "networks").glob("host.*"))


@pytest.mark.slow
def test_the_same_key_has_the_same_bits_whichever_process_trains_it(config, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    plan = plan_run(config(*PRETRAINED, f"exec.outputs={here}"))
    pretrained_hosts.pretrain(plan.config.host, plan.backend, here)
    code = "from layergraft.cli.commands import main; main()"
    command = [sys.executable, "-c", code, "pretrain", *PRETRAINED, f"exec.outputs={there}", "exec.threads=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == plan.host_key and networks(here) == networks(there) == [plan.host_key]
    assert (
        "resnet8 trained on 299 images of digits_a classifies " in done.stderr
        and "% of its test images correctly" in done.stderr
    )
    first, second = (folder / "networks" / plan.host_key / "network.safetensors" for folder in (here, there))
    assert first.read_bytes() == second.read_bytes()


def test_runs_share_a_host_and_start_from_it(run, tmp_path):
    record, _ = run()
    (key,) = networks(tmp_path / "outputs")
    assert record.host["network"] == key and record.host["data"] == "digits_a" and record.host["seed"] == 0
    assert record.host["head"] == "kept" and record.host["metrics"]["test/acc"] > 0
    made = (tmp_path / "outputs" / "networks" / key / "network.json").stat().st_mtime_ns
    run("strategy=freeze")
    run("donor=none")
    assert networks(tmp_path / "outputs") == [key]
    assert (tmp_path / "outputs" / "networks" / key / "network.json").stat().st_mtime_ns == made
    run("seed=1")  # its seed is the run's
    run("seed=2", "host.pretrain.seed=0")  # unless it is fixed
    assert len(networks(tmp_path / "outputs")) == 2


@pytest.mark.parametrize("changed", [
    "host.pretrain.seed=1", "host.pretrain.schedule.epochs=1", "host.pretrain.optim.lr=1e-3", "host.pretrain.data.flip=true",
    "host.width=2", "host.pretrain.optim=sgd", "host.pretrain.schedule=constant",
])  # fmt: skip
def test_its_recipe_is_part_of_the_runs_key(config, changed):
    plain, other = (plan_run(config(*PRETRAINED, *more)) for more in ([], [changed]))
    assert plain.host_key != other.host_key and plain.key != other.key


def test_what_does_not_train_it_is_no_part_of_its_key(config):
    plain = plan_run(config(*PRETRAINED))
    for other in (
        "strategy=freeze",
        "optim.lr=1",
        "host.head=new",
        "data.corrupt.blur=1",
        "donor=none",
        "data.train_size=50",
    ):
        assert plan_run(config(*PRETRAINED, other)).host_key == plain.host_key, other
    assert plan_run(config("donor=none")).host_key is None


def test_self_under_full_is_no_graft_under_full_bit_for_bit(run):
    """The host's own layer, loaded into the host that it is of, is that host."""
    (none, without), (own, grafted) = run("donor=none"), run("donor=self")
    assert own.metrics["shock/acc"] == own.metrics["shock/loss"] == 0
    assert without.keys() == grafted.keys() and all(torch.equal(without[name], grafted[name]) for name in without)
    assert none.metrics["test/loss"] == own.metrics["test/loss"]


def test_a_new_head_changes_nothing_else(config, tmp_path):
    states = []
    for head in ("keep", "new"):
        plan = plan_run(config(*PRETRAINED, f"exec.outputs={tmp_path}", f"host.head={head}"))
        host, facts = pretrained_hosts.build(plan.config.host, plan.data, 0, plan.keeps_head, plan.backend, tmp_path)
        assert facts["head"] == {"keep": "kept", "new": "new"}[head]
        states.append(host.state_dict())
    kept, new = states
    assert [name for name in kept if not torch.equal(kept[name], new[name])] == ["fc.weight", "fc.bias"]
    assert torch.equal(new["fc.weight"], CifarResNet("resnet8", width=4).build((1, 8, 8), 10, seed=0).fc.weight)


def test_the_head_is_kept_where_the_classes_are_the_same(config, run):
    assert plan_run(config(*PRETRAINED)).keeps_head
    other = ["data.classes=[0,1,2]", "data.train_size=50"]
    assert not plan_run(config(*PRETRAINED, *other)).keeps_head
    assert not plan_run(
        config(*PRETRAINED, "data.classes=[1,0,2,3,4,5,6,7,8,9]")
    ).keeps_head  # as many, in another order
    record, _ = run(*other)
    assert record.host["head"] == "new" and not {"shock/acc", "shock/loss", "steps_to/recover"} & record.metrics.keys()
    assert run()[0].metrics["shock/acc"] <= 0


def test_images_are_normalised_as_the_host_knows_them(run):
    train = Digits("digits_a", half="A", halves="images").load(0).train.x_NCHW / 255
    of_host = [train.mean(), train.std(ddof=1)]
    for given, wanted in (("auto", of_host), ("[[0.5],[0.25]]", [0.5, 0.25])):
        found = run(f"data.normalize={given}")[0].normalization
        assert [found["mean"][0], found["std"][0]] == pytest.approx(wanted, rel=1e-12)
    blurred = run("data.normalize=train")[0].normalization
    assert blurred["std"][0] < 0.9 * of_host[1]
    assert run("host.pretrain.data.normalize=[[0.5],[0.25]]")[0].normalization == {"mean": [0.5], "std": [0.25]}


def test_named_weights_are_normalised_by_their_own_figures(tmp_path, monkeypatch, config):
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "checkpoints" / weights.url.rsplit("/", 1)[-1])
    found = pretrained_hosts.normalization(TorchvisionResNet("resnet18", weights="IMAGENET1K_V1"))
    assert list(found.mean) == weights.transforms().mean and list(found.std) == weights.transforms().std
    chosen = ["host=resnet18", "host.weights=IMAGENET1K_V1", "host.in_channels=3", "strategy=head_only", "schedule.epochs=1",
              "donor=none", "data.train_size=10", "optim.batch_size=10", "exec.device=cpu", f"exec.outputs={tmp_path}"]  # fmt: skip
    record = execute(plan_run(config(*chosen)))
    assert record.normalization == {"mean": weights.transforms().mean, "std": weights.transforms().std}
    assert record.host == {"head": "new", "weights": "IMAGENET1K_V1"}
    file = tmp_path / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    same = plan_run(config(*chosen[:1], f"host.weights={file}", "host.stem=imagenet", *chosen[2:]))
    named = plan_run(config(*chosen, "host.stem=imagenet"))
    assert same.key != named.key  # a file does not tell by which figures images are normalised


def test_the_public_resnets_classifier_goes_by_another_name(tmp_path):
    host = CifarResNet("resnet8", width=4)
    state = host.build((3, 32, 32), 10, seed=3).state_dict()
    save_file({name.replace("fc.", "module.linear."): x for name, x in state.items()}, tmp_path / "public.safetensors")
    host.weights = str(tmp_path / "public.safetensors")
    facts = Digits().load(0).facts
    loaded, _ = pretrained_hosts.build(host, type(facts)("", (3, 32, 32), 10, facts.task), 0, True, CPU, tmp_path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


BAD = {
    ("host.pretrain.data=digits",): "host.pretrain.data: the host's training split has 100 of the 100 training images of data, and its validation split has 150 of the 150 validation images of data; to separate them give host.pretrain.data.half=A host.pretrain.data.halves=images; exec.allow_leak=true",
    ("host.pretrain.data.half=B",): "host.pretrain.data: the host's training split has 100 of the 100 training images of data, and its",
    ("host.weights=host.pt",): "host.weights and host.pretrain.data are both set; give host.pretrain.data=none or host.weights=null",
    ("host.pretrain.data=textures",): "host.pretrain.data=textures has images of 3 channels, data of 1 channel; host.in_channels=3",
    ("host.pretrain.data=textures", "host.in_channels=1", "host.head=keep"): "host.pretrain.data=textures has 8 classes, data has 10; host.head=new",
    ("host.pretrain.data=digit",): "unknown data 'digit'; did you mean 'digits'?",
    ("host.pretrain.optim.lr=0",): "host.pretrain.optim.lr is 0.0",
    ("host.pretrain.optim.batch_size=1000",): "host.pretrain.optim.batch_size is 1000, but there are 299 training images",
    ("host.pretrain.data=none", "host.head=keep"): "host.head is keep, but the host has no trained weights",
    ("host.head=keap",): "unknown host.head 'keap'; did you mean 'keep'?",
    ("data.normalize=trian",): "data.normalize is trian; it must be auto, train or [[means],[deviations]]",
    ("data.normalize=[[0.5,0.5,0.5],[1,1,1]]",): "data.normalize has 3 means, but the images have 1 channels",
    ("data.resplit=test",): "data.resplit is test, but digits_b_blurred has no splits of its own",
    ("host.pretrain.data=none", "host.pretrain.data.half=A"): "host.pretrain.data is none, so host.pretrain.data.half says nothing",
    ("data.normalize=[[128],[64]]",): "but it is of images from 0 to 1; divide means and deviations by 255",
    ("host.pretrain=digits_a",): "host.pretrain is a group of keys, not a name; host.pretrain.data=digits_a chooses the data set",
    ("data=none",): "data=none: only host.pretrain.data can be none; choose a data set",
}  # fmt: skip


@pytest.mark.parametrize("overrides, message", BAD.items(), ids=map(" ".join, BAD))
def test_bad_input_is_one_line_before_any_training(overrides, message, command, tmp_path):
    code, out, err = command("train", *PRETRAINED, f"exec.outputs={tmp_path}", *overrides)
    assert code == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "networks").exists() and not (tmp_path / "runs").exists()


def test_a_host_that_another_set_of_the_same_images_has_trained_is_refused(config, tmp_path):
    """The same pixels in a file of another kind."""
    digits = Digits().load(0)
    arrays = {f"{part}_images": split.x_NCHW[:, 0] for part, split in digits.splits.items()}
    arrays |= {f"{part}_labels": split.y_N for part, split in digits.splits.items()}
    np.savez(tmp_path / "copy.npz", **arrays)
    with pytest.raises(
        UserError,
        match="host.pretrain.data: the host's training split has 100 of the 100 training images .*; to separate them choose other",
    ):
        plan_run(config(*PRETRAINED, "host.pretrain.data=npz", f"host.pretrain.data.path={tmp_path / 'copy.npz'}"))


@pytest.mark.slow
def test_a_host_whose_weights_diverge_fails_its_runs_and_no_others(command, tmp_path):
    code, _, err = command("train", "-m", *PRETRAINED, "host.pretrain.optim.lr=5e-3,1e30", "exec.sweep=two",
                           f"exec.outputs={tmp_path}")  # fmt: skip
    assert code == 1 and "1 of 2 runs completed" in err and "2 hosts, " in err
    records = [read_record(folder) for folder in (tmp_path / "runs").iterdir()]
    (failed,) = [record for record in records if record.status == "failed"]
    assert "the training of host.resnet8.digits_a.seed0." in failed.error and "diverged" in failed.error


@pytest.mark.slow
def test_a_sweep_killed_while_a_host_is_trained_goes_on(tmp_path):
    outputs = tmp_path / "outputs"
    arguments = [
        "train",
        "-m",
        *PRETRAINED,
        "host.pretrain.schedule.epochs=25",
        "exec.sweep=killed",
        f"exec.outputs={outputs}",
    ]
    start = [sys.executable, "-c", "from layergraft.cli.commands import main; main()", *arguments]
    killed = subprocess.Popen(start, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((outputs / "networks").glob(".host.*.unfinished/events*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not networks(outputs) and list((outputs / "networks").glob(".host.*.unfinished"))
    done = subprocess.run(start, capture_output=True, text=True)
    assert done.returncode == 0 and "1 of 1 run completed" in done.stderr, done.stderr
    (key,) = networks(outputs)
    assert json.loads((outputs / "networks" / key / "network.json").read_text())["schedule"]["epochs"] == 25
    assert not list((outputs / "networks").glob(".host.*.unfinished"))


@pytest.mark.slow
def test_two_sweeps_that_need_the_same_host_train_it_once(tmp_path):
    """Started together; each training leaves a line where torch's optimizer is made."""
    outputs, log = tmp_path / "outputs", tmp_path / "trained"
    code = f"""
from pathlib import Path
from layergraft.networks import network_cache
plain = network_cache._fit
def counted(network, *rest):
    with open({str(log)!r}, "a") as file:
        file.write(rest[-2] + "\\n")
    return plain(network, *rest)
network_cache._fit = counted
from layergraft.cli.commands import main
main()
"""
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, "train", *PRETRAINED, f"strategy={strategy}", f"exec.outputs={outputs}"],
                         stderr=subprocess.DEVNULL)
        for strategy in ("freeze", "full")
    ]  # fmt: skip
    assert [job.wait() for job in jobs] == [0, 0]
    assert log.read_text().split() == networks(outputs) and len(list((outputs / "runs").iterdir())) == 2


def test_halves_of_the_images_share_none_and_have_the_same_classes():
    a, b = (Digits(half=half, halves="images").load(0) for half in "AB")
    whole = Digits().load(0)
    for part in ("train", "val", "test"):
        rows = [set(data.splits[part].rows.tolist()) for data in (a, b)]
        assert not rows[0] & rows[1] and rows[0] | rows[1] == set(whole.splits[part].rows.tolist())
        counts = [np.bincount(data.splits[part].y_N, minlength=10) for data in (a, b)]
        assert abs(counts[0] - counts[1]).max() <= 1
    assert a.class_names == b.class_names == whole.class_names
    other = Digits(half="A", halves="images", halves_seed=1).load(0)
    assert set(other.train.rows.tolist()) != set(a.train.rows.tolist())
    few = Digits(half="A", halves="images", classes=[3, 5]).load(0)
    assert few.class_names == ("3", "5") and set(few.train.rows.tolist()) <= set(a.train.rows.tolist())


def test_a_sets_own_test_split_can_be_split_anew(tmp_path):
    from layergraft.data import Npz

    rng, arrays = np.random.default_rng(0), {}
    for part, number in (("train", 30), ("test", 100)):
        arrays |= {
            f"{part}_images": rng.integers(0, 256, (number, 8, 8), np.uint8),
            f"{part}_labels": np.arange(number) % 2,
        }
    np.savez(tmp_path / "set.npz", **arrays)
    data = Npz(path=str(tmp_path / "set.npz"), resplit="test", test_share=0.5, val_share=0.2).load(0)
    assert [len(split) for split in data.splits.values()] == [40, 10, 50]
    assert min(split.rows.min() for split in data.splits.values()) == 30  # of the training images none
    with pytest.raises(UserError, match="unknown split of npz in data.resplit: 'val'. There are: train, test"):
        Npz(path=str(tmp_path / "set.npz"), resplit="val").load(0)


def test_a_recipe_of_its_own_trains_a_better_host_than_none(tmp_path):
    """Twenty epochs on the digits: it tells them apart."""
    host = CifarResNet("resnet8", width=4)
    host.pretrain.data = Digits("digits_a", half="A", halves="images", shift=1)
    host.pretrain.optim, host.pretrain.schedule = OptimSpec(lr=1e-2), ScheduleSpec("cosine", 20)
    _, facts = pretrained_hosts.pretrain(host, CPU, tmp_path)
    assert facts["metrics"]["test/acc"] > 80


def test_what_an_arm_costs_is_in_its_record(run):
    whole, _ = run("donor=none")
    frozen, tensors = run("strategy=freeze")
    donor = tensors["layer3.0.conv2.weight"].numel()
    assert whole.costs["trained_parameters"] - frozen.costs["trained_parameters"] == donor
    head, _ = run("strategy=head_only", "donor=none")
    assert head.costs["trained_parameters"] == tensors["fc.weight"].numel() + tensors["fc.bias"].numel()


@pytest.mark.slow
def test_a_files_classifier_is_kept_with_a_word_on_how_good_it_is(command, tmp_path):
    """Its classes are not known: ten of them may be the digits."""
    state = CifarResNet("resnet8", width=4).build((1, 8, 8), 10, seed=3).state_dict()
    save_file(state, tmp_path / "host.safetensors")
    asked = [
        *PRETRAINED,
        "host.pretrain.data=none",
        f"host.weights={tmp_path / 'host.safetensors'}",
        f"exec.outputs={tmp_path}",
    ]
    told = "host.safetensors is kept: it has as many classes as digits_b_blurred, whose names it does not tell. As it is, the host has "
    for more in ([], ["-m", "strategy=freeze,full"]):
        code, _, err = command("train", *more[:1], *asked, *more[1:])
        assert code == 0 and told in err and "% of the validation images right (host.head=new replaces it)" in err, err
    code, _, err = command("train", *asked, "host.head=new")
    assert code == 0 and told not in err and "classifier new" in err


def test_images_from_files_have_the_size_that_named_weights_know(config, tmp_path):
    chosen = ["data=folder", f"data.path={tmp_path}", "host=resnet50"]
    named = config(*chosen, "host.weights=IMAGENET1K_V2")
    wanted = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms().crop_size
    assert [named.data.sized(named.host.input_size()).size] == wanted == [224]
    asked = config(*chosen, "host.weights=IMAGENET1K_V2", "data.size=96")
    assert asked.data.sized(asked.host.input_size()).size == 96
    assert config(*chosen).host.input_size() is None
