"""One run on the device: what holds still, what is equal to the CPU's, what the fast paths change."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.profiler import ProfilerActivity, profile

from layergraft.config.schema import ProbeSpec
from layergraft.config.training_schema import OptimSpec, PhaseSpec, ScheduleSpec, StrategySpec
from layergraft.data.batches import Batches, BatchSpec
from layergraft.data.pixel_loading import Streamed
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.norms import statistics_paths
from layergraft.hosts.sites import find_sites
from layergraft.runs.plan import plan_run
from layergraft.runs.similarity import similarity
from layergraft.runs.train import execute, probes_of
from layergraft.strategies.phases import make_plan
from layergraft.surgery import Replace, calibrated, graft
from layergraft.training.backend import Backend
from layergraft.training.fit import fit
from layergraft.training.probes import Probes, ProbeTargets
from layergraft.training.recipe import Recipe
from training.test_prefix_cache import KEPT, STEM, both_ways, frozen
from training.test_resume import ADAMW, COSINE, SGD, Experiment, require_exact_from_every_checkpoint

pytestmark = pytest.mark.cuda


def trained(config):
    """(the run as it was built, its record, the weights that it ended with)."""
    before = plan_run(config).build()
    record = execute(before.plan)
    assert record.status == "completed", record.traceback
    return before, record, load_file(before.plan.folder / "model.safetensors")


@pytest.fixture
def deterministic():
    """The same bits each time, on CUDA too; an operation that cannot raises."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def apart(some, others):
    """Euclidean distance of two state dicts' weights: statistics, and counts of batches, would outweigh them."""
    names = [name for name in others if name.endswith(("weight", "bias"))]
    return sum((some[name].double() - others[name].double()).square().sum().item() for name in names) ** 0.5


@pytest.mark.parametrize("precision", ["float32", "bf16_mixed"])
def test_what_is_frozen_is_byte_identical_afterwards(on_device, precision):
    before, _, after = trained(on_device("strategy=freeze", "optim=sgd", f"precision={precision}", "site=layer2.0"))
    still = [*before.plan.strategy.groups["graft"]]
    still += [f"{path}.{name}" for path, group in before.plan.strategy.norms.items() if group == "graft"
               for name in ("running_mean", "running_var", "num_batches_tracked")]  # fmt: skip
    start = before.network.state_dict()
    moved = {name for name, tensor in start.items() if not torch.equal(tensor, after[name])}
    assert len(still) > 6 and moved and not moved & set(still)
    assert moved | set(still) == set(start)


def test_bf16_with_clipping_accumulation_and_an_average(on_device):
    options = [
        "optim.clip_norm=0.5",
        "optim.accumulate=2",
        "regularizer.ema=0.9",
        "strategy=full",
        "data.train_size=200",
    ]
    start, _, low = trained(on_device(*options, "precision=bf16_mixed"))
    _, _, full = trained(on_device(*options, "precision=float32"))
    moved = apart(full, start.network.state_dict())
    assert 0 < apart(low, full) < 0.2 * moved  # Adam's steps are by the sign where gradients are all but 0


@pytest.mark.parametrize("optim, precision", [(SGD, "float32"), (ADAMW, "bf16_mixed")], ids=["sgd", "adamw"])
def test_a_resumed_run_ends_with_the_same_weights(images, config, tmp_path, monkeypatch, device, deterministic, optim, precision):  # fmt: skip
    strategy = config("strategy=hybrid", "schedule.epochs=4").strategy
    data = replace(images(channels=1, size=8), train=images(channels=1, size=8).train.take(range(25)))
    backend = Backend(device, precision, channels_last=None)
    experiment = Experiment(data, tmp_path / "checkpoints", monkeypatch, strategy, optim, COSINE, dropout=0.3, backend=backend)  # fmt: skip
    require_exact_from_every_checkpoint(experiment)


@pytest.mark.parametrize("strategy", ["l2_sp", "auto_rgn"])
def test_it_learns_what_it_learns_on_a_cpu(on_device, tmp_path, strategy):
    options = [f"strategy={strategy}", "precision=float32", "optim=sgd", "optim.lr=0.01", "data.train_size=200", "schedule.epochs=2"]  # fmt: skip
    start, record, there = trained(on_device(*options))
    _, again, here = trained(on_device(*options, "exec=cpu", f"exec.outputs={tmp_path / 'cpu'}"))
    assert record.key == again.key
    moved = apart(here, start.network.state_dict())
    assert moved > 0 and apart(there, here) < 0.01 * moved


@pytest.mark.parametrize("calibrate", ["none", "batch_norm", "moments", "lsuv"])
def test_calibration_and_least_squares_give_what_they_give_on_a_cpu(images, device, calibrate):
    data, spec = images(channels=1, size=8), Replace(channel_matching="project", calibrate=calibrate)
    torch.manual_seed(3)
    host, donor = CifarResNet("resnet8", width=4), nn.Conv2d(6, 8, 3, padding=1)
    x_NCHW, _ = Batches.of(data, BatchSpec(10), 0, "cpu").val.first(20)
    found = []
    for where in (device, "cpu"):
        intact = host.build(data.shape, data.num_classes, seed=0)
        made = graft(
            intact, [(find_sites(intact, data.shape)["layer2.0.conv1"], copy.deepcopy(donor))], spec, data.shape
        )
        plain = {name: tensor.clone() for name, tensor in made.network.state_dict().items()}
        made.host.to(where)
        made.network.to(where)
        with Backend(where, "float32").arithmetic():
            fitted = calibrated(made, x_NCHW.to(where), spec).network.cpu()
        found.append(fitted.state_dict())
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in found[1].items())
    for name, tensor in found[1].items():
        torch.testing.assert_close(found[0][name], tensor, rtol=1e-2, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")  # fmt: skip


def test_probes_and_similarity_see_what_they_see_on_a_cpu(on_device, tmp_path):
    options = ["donor=pca", "strategy=freeze", "precision=float32", "exec.similarity.resamples=2", "schedule.epochs=1"]
    (there, first), (here, second) = (
        (execute(plan_run(config)), similarity(plan_run(config).build()))
        for config in (on_device(*options), on_device(*options, "exec=cpu", f"exec.outputs={tmp_path / 'cpu'}"))
    )
    assert first == there.similarity and second == here.similarity
    seen, wanted = there.probes[0], here.probes[0]
    assert seen == pytest.approx(wanted, rel=5e-3, abs=1e-4) and len(seen) > 15
    assert first["site"].keys() == second["site"].keys() != set()
    for at in second["site"]:
        for measure, found in second["site"][at].items():
            one_image = 0.1 if measure == "a_distance" else 1e-3  # that a classifier may tell otherwise
            assert first["site"][at][measure]["mean"] == pytest.approx(found["mean"], rel=0.02, abs=one_image)


def test_batches_are_moved_once_an_epoch(images, device):
    batches = Batches.of(images(), BatchSpec(5, shift=1, flip=True), 0, device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    list(batches.train)
    with profile(activities=activities) as seen:
        assert len(list(batches.train)) == 8
    moved = [event.name for event in seen.events() if "Memcpy HtoD" in event.name]
    waits = [event.name for event in seen.events() if event.name == "aten::_local_scalar_dense"]
    assert waits == [] and len(moved) == (3 if device == "cuda" else 0)  # order, offsets, mirrors


def test_batches_read_from_the_disk_are_those_that_lie_on_the_device(images, device):
    data, spec = images(), BatchSpec(10, shift=1, flip=True)
    resident, streamed = (Batches.of(data, spec, 0, device, gib=gib, readers=2) for gib in (1, 0))
    assert {type(part.pixels) for part in (streamed.train, streamed.val, streamed.test)} == {Streamed}
    pairs = zip([*resident.train, *resident.val], [*streamed.train, *streamed.val], strict=True)
    for (x, y), (same_x, same_y) in pairs:
        assert torch.equal(x, same_x) and torch.equal(y, same_y) and same_x.device.type == device


@pytest.mark.parametrize("precision, rounding", [("float32", 0.01), ("bf16_mixed", 0.2)])
def test_channels_last_is_the_same_training(on_device, device, precision, rounding):
    options = ["strategy=full", "optim=sgd", "optim.lr=0.01", "schedule.epochs=2", "host.width=16"]
    before = plan_run(on_device(*options)).build()
    ended = []
    for last in (True, False):
        network, seen = copy.deepcopy(before.network), []
        network.layer1.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        batches = Batches.of(before.images, BatchSpec(50), 0, device)
        fit(
            network,
            before.plan.strategy,
            batches,
            Recipe(before.config.optim, before.config.schedule),
            Backend(device, precision, channels_last=last),
        )
        assert seen[0].is_contiguous(memory_format=torch.channels_last) == last
        assert seen[0].dtype == (torch.bfloat16 if precision == "bf16_mixed" else torch.float32)
        assert all(tensor.is_contiguous() for tensor in network.state_dict().values())
        ended.append({name: tensor.cpu() for name, tensor in network.state_dict().items()})
    moved = apart(ended[0], before.network.state_dict())
    assert apart(*ended) < rounding * moved


@pytest.mark.parametrize(
    ("host", "still"),
    [(CifarResNet("resnet8", width=16), [*STEM, "layer1"]), (TorchvisionResNet("resnet18", width=16), [*STEM, "layer1", "layer2"])],
    ids=["resnet8", "resnet18"],
)  # fmt: skip
@pytest.mark.parametrize("precision", ["float32", "bf16_mixed"])
def test_a_kept_prefix_changes_no_bit(images, device, deterministic, host, still, precision):
    data = images()
    network = host.build(data.shape, data.num_classes, seed=0)
    kept = replace(KEPT, device=device, precision=precision, channels_last=None)
    fitted = both_ways(network, *frozen(*still), data, kept=kept)
    (prefix,) = fitted.prefixes
    assert prefix["through"].startswith(still[-1])


def test_a_look_moves_nothing(on_device, deterministic):
    options = ["strategy=hybrid", "schedule.epochs=2"]
    ended = []
    for epochs, looks in (("[]", []), ("[0,1,-1]", [0, 1, 2])):
        config = on_device(*options, f"exec.probe.epochs={epochs}")
        before = plan_run(config).build()
        batches = Batches.of(before.images, BatchSpec(50), 0, before.plan.backend.device)
        probes = probes_of(before, batches)
        recipe = Recipe(config.optim, config.schedule)
        fit(before.network, before.plan.strategy, batches, recipe, before.plan.backend, probe=probes)
        assert [point["epoch"] for point in probes.points] == looks
        ended.append({name: tensor.cpu() for name, tensor in before.network.state_dict().items()})
    assert all(torch.equal(tensor, ended[1][name]) for name, tensor in ended[0].items())


def test_compiled_training_across_a_phase_change_is_eager_training(images, device):
    torch.compiler.reset()
    data = images(channels=1, size=8)
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    network = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    groups = {"conv": ["0"], "rest": [".*"]}
    phases = {"a": PhaseSpec(0, {"rest": 1.0}, ["conv"]), "b": PhaseSpec(2, {"conv": 0.5}, ["rest"])}
    names = [name for name, _ in network.named_parameters()]
    plan = make_plan(StrategySpec("s", groups=groups, phases=phases), names, statistics_paths(network), {}, 4)
    batches = Batches.of(data, BatchSpec(10), 0, device)
    recipe = Recipe(OptimSpec("sgd", 0.2, weight_decay=0.1, batch_size=10), ScheduleSpec(epochs=4))
    compiled = copy.deepcopy(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fitted = fit(network, plan, batches, recipe, Backend(device, "float32"))
    subject = ProbeTargets(["0", "3"], drifting=["0.0.weight"])
    probes = Probes(ProbeSpec([0, 1, -1]), compiled, subject, batches.val.first(20), batches.val, 4)
    again = fit(compiled, plan, batches, recipe, Backend(device, "float32", compile=True), probe=probes)
    assert [point["epoch"] for point in probes.points] == [0, 1, 4]  # the hooks are seen by none but the look itself
    assert compiled._compiled_call_impl is not None
    rounding = 1e-5 if device == "cpu" else 1e-4
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor, rtol=0, atol=rounding, msg=name)
    assert [p["train/loss"] for p in again.curves] == pytest.approx([p["train/loss"] for p in fitted.curves], abs=rounding)  # fmt: skip
    assert list(compiled.state_dict()) == list(before)
    assert not torch.equal(compiled[0][0].weight.cpu(), before["0.0.weight"])  # thawed, though it was compiled frozen
