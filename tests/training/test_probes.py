"""Probes see what is there, and move nothing."""

import copy

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from conftest import CPU
from layergraft.config.schema import ProbeSpec
from layergraft.config.training_schema import OptimSpec, PhaseSpec, ScheduleSpec, StrategySpec
from layergraft.data.batches import Batches, BatchSpec
from layergraft.hosts import CifarResNet
from layergraft.hosts.norms import statistics_paths
from layergraft.hosts.sites import find_sites
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute
from layergraft.strategies.phases import make_plan
from layergraft.surgery import Replace, graft
from layergraft.training.evaluation import Statistics, evaluating, record_activations
from layergraft.training.fit import fit
from layergraft.training.probes import Probes, ProbeTargets, drawn
from layergraft.training.recipe import Recipe

HOST = CifarResNet("resnet8", width=4)
SITE = "layer2.0.conv1"
STRATEGY = StrategySpec(
    "s", groups={"graft": ["graft"], "rest": [".*"]}, phases={"p": PhaseSpec(0, {"rest": 1.0, "graft": 1.0})}
)


@pytest.fixture
def looked(images, tmp_path):
    """Function: (probe spec, what to watch) -> (fitted, network, network before, host, batches, probes)."""

    def run(spec, freeze=False, epochs=3, own=False):
        data = images(channels=1, size=8)
        host = HOST.build(data.shape, data.num_classes, seed=0)
        torch.manual_seed(7)
        donor = copy.deepcopy(host.get_submodule(SITE)) if own else nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        made = graft(host, [(find_sites(host, data.shape)[SITE], donor)], Replace(), data.shape)
        network, before = made.network, copy.deepcopy(made.network)
        strategy = copy.deepcopy(STRATEGY)
        if freeze:
            strategy.phases["p"] = PhaseSpec(0, {"rest": 1.0}, ["graft"])
        names = [name for name, _ in network.named_parameters()]
        plan = make_plan(strategy, names, statistics_paths(network), HOST.roles | made.roles, epochs)
        batches = Batches.of(data, BatchSpec(10), 0, "cpu")
        subject = ProbeTargets(
            ["layer2.0", "fc"], {SITE: (SITE, SITE)}, host, [f"{SITE}.weight"], [], [f"{SITE}.weight"]
        )
        probes = Probes(spec, network, subject, batches.val.first(20), batches.val, epochs)
        recipe = Recipe(OptimSpec("sgd", 0.05, batch_size=10), ScheduleSpec(epochs=epochs))
        fitted = fit(network, plan, batches, recipe, CPU, folder=tmp_path, probe=probes)
        return fitted, network, before, host, batches, probes

    return run


def test_probes_move_nothing(looked):
    plain, network, *_ = looked(ProbeSpec([]))
    probed, same, *_, probes = looked(ProbeSpec([0, 1, 2, 3, -1]))
    assert plain.curves == probed.curves and plain.summary() == probed.summary()
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in network.state_dict().items())
    assert [point["epoch"] for point in probes.points] == [0, 1, 2, 3]


def test_drift_gradients_and_the_shock_by_hand(looked):
    _, network, before, host, batches, probes = looked(ProbeSpec([0, -1]))
    first, last = probes.points
    start, end = before.get_submodule(SITE).weight, network.get_submodule(SITE).weight
    assert first["drift"] == 0 and last["drift"] == pytest.approx(
        ((end - start).norm() / start.norm()).item(), rel=1e-5
    )
    assert looked(ProbeSpec([-1]), freeze=True)[-1].points[0]["drift"] == 0

    x, y = batches.val.first(20)
    network.eval()
    loss = F.cross_entropy(network(x), y)
    names = [name for name, _ in network.named_parameters()]
    grads = dict(zip(names, torch.autograd.grad(loss, list(network.parameters())), strict=True))
    of_graft = grads[f"{SITE}.weight"].norm() / end.norm()
    assert last["gradient/graft"] == pytest.approx(of_graft.item(), rel=1e-4)
    rest = [name for name in names if not name.startswith(SITE)]
    norm = lambda tensors: torch.cat([tensor.flatten() for tensor in tensors]).norm()  # noqa: E731
    expected = norm([grads[name] for name in rest]) / norm([network.get_parameter(name) for name in rest])
    assert last["gradient/rest"] == pytest.approx(expected.item(), rel=1e-4)

    for part, name in (
        (before, "loss"),
        (host, "intact/loss"),
    ):  # norms that were never trained take the batch's statistics
        part.train()
        with torch.no_grad():
            assert first[name] == pytest.approx(F.cross_entropy(part(x), y).item(), rel=1e-4)
    assert {"acc", "intact/acc"} <= set(first) and "loss" not in last


def test_the_hosts_own_layer_is_no_shock_and_no_distance(looked):
    fitted, *_, probes = looked(ProbeSpec([0]), own=True)
    (point,) = probes.points
    assert point["loss"] == point["intact/loss"]
    for side in ("in", "out"):
        assert point[f"frechet/{SITE}/{side}"] == pytest.approx(0, abs=1e-6)
        assert point[f"cka/{SITE}/{side}"] == pytest.approx(1)
    assert probes.summary(fitted.curves, 4)["steps_to/recover"] == 0


def test_another_layer_is_further_from_the_host_at_its_output(looked):
    *_, probes = looked(ProbeSpec([0]))
    (point,) = probes.points
    assert point[f"frechet/{SITE}/in"] == pytest.approx(0, abs=1e-6) and point[f"cka/{SITE}/in"] == pytest.approx(1)
    assert point[f"frechet/{SITE}/out"] > 1e-3 and point[f"cka/{SITE}/out"] < 0.95


def test_steps_to_recover_and_to_a_threshold():
    probes = Probes(
        ProbeSpec([], thresholds=[40, 80, 90]),
        nn.Linear(1, 1),
        ProbeTargets(),
        (torch.zeros(2, 1), torch.zeros(2)),
        [],
        3,
    )
    curves = [
        {"epoch": e, "val/loss": loss, "val/acc": acc}
        for e, (loss, acc) in enumerate([(3.0, 30), (2.0, 50), (1.0, 80)])
    ]
    first = {"epoch": 0, "loss": 5.0, "acc": 10.0, "intact/loss": 2.0, "intact/acc": 40.0}
    probes.points = [first]
    assert probes.summary(curves, 7) == {
        "step0/acc": 10.0,
        "step0/loss": 5.0,
        "shock/loss": 3.0,
        "shock/acc": -30.0,
        "steps_to/recover": 14,
        "steps_to/40": 14,
        "steps_to/80": 21,
        "steps_to/90": None,
    }
    probes.points = [first | {"intact/loss": 0.5}]
    assert probes.summary(curves, 7)["steps_to/recover"] is None


def test_statistics_of_activations():
    statistics = Statistics()
    statistics.add(torch.tensor([[[1.0, 3.0], [0.0, 0.0]]]))  # one image, two channels
    statistics.add(torch.tensor([[[0.0, 0.0], [0.0, 0.0]]]))
    assert (statistics.mean, statistics.share_zero, statistics.share_dead) == (0.5, 0.75, 0.5)
    assert statistics.deviation**2 == pytest.approx(10 / 8 - 0.25)


def test_seeing_moves_nothing():
    network = HOST.build((1, 8, 8), 4, seed=0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    seen = record_activations(network.train(), ["layer1"], torch.randn(20, 1, 8, 8), torch.zeros(20, dtype=torch.int64))
    assert network.training and seen.activations["layer1"].count == 20 * 4 * 8 * 8
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_norms_over_several_processes_are_looked_at_alone():
    """Looked at by one process, a SyncBatchNorm must not wait for the others; on a CPU it would refuse to run at all."""
    network = nn.SyncBatchNorm.convert_sync_batchnorm(HOST.build((1, 8, 8), 4, seed=0))
    plain = HOST.build((1, 8, 8), 4, seed=0)
    x, y = torch.randn(20, 1, 8, 8), torch.zeros(20, dtype=torch.int64)
    assert record_activations(network, [], x, y).loss == record_activations(plain, [], x, y).loss
    assert isinstance(network.bn1, nn.SyncBatchNorm) and network.bn1.num_batches_tracked == 0


def test_after_training_the_network_is_run_as_it_is_evaluated(looked):
    """A strategy may hold norms in evaluation mode with the statistics they were born with: they take no others then."""
    fitted, network, *_, batches, probes = looked(ProbeSpec([0, -1]), freeze=True)
    network.bn1.reset_running_stats()
    x, y = batches.val.first(20)
    network.eval()
    with torch.no_grad():
        expected = F.cross_entropy(network(x), y).item()
    assert record_activations(network, [], x, y, evaluating).loss == pytest.approx(expected, rel=1e-6)
    assert record_activations(network, [], x, y).loss != pytest.approx(expected, rel=1e-3)


def test_filters_are_drawn_before_and_after(looked, tmp_path):
    looked(ProbeSpec([0, -1]))
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    assert events.Tags()["images"] == [f"filters/{SITE}.weight"]
    first, last = events.Images(f"filters/{SITE}.weight")
    assert (first.step, last.step) == (0, 3) and first.encoded_image_string != last.encoded_image_string
    scalars = events.Tags()["scalars"]
    assert {"probe/drift", f"probe/frechet/{SITE}/out", "probe/activation/fc/mean", "probe/gradient/rest"} <= set(
        scalars
    )


def test_drawn_filters():
    colour = drawn(torch.randn(5, 3, 7, 7))
    assert colour.shape[0] == 3 and 0 <= colour.min() and colour.max() <= 1
    zero = drawn(torch.zeros(2, 4, 3, 3))
    assert set(zero.unique().tolist()) == {0.5, 1.0}  # mid-grey on white
    assert drawn(torch.eye(6)[:, :, None, None]).shape == (3, 24, 24)  # a matrix, 4 pixels an entry


def test_a_run_keeps_what_was_seen(config, tmp_path):
    record = execute(plan_run(config("host=resnet8", "host.width=4", "donor=random", "strategy=freeze", "schedule.epochs=2", "surgery=insert",
                            "surgery.gate=0.5", "site=late", "exec.device=cpu", f"exec.outputs={tmp_path}", "exec.probe.epochs=[0,1,-1]")))  # fmt: skip
    assert record.status == "completed", record.traceback
    assert [point["epoch"] for point in record.probes] == [0, 1, 2]
    gates = [point["gate/layer3.0.conv2.donor.gate"] for point in record.probes]
    assert gates[0] == 0.5 and gates[2] != 0.5
    assert {"step0/loss", "step0/acc", "steps_to/50", "drift"} <= set(record.metrics)
    assert "shock/loss" not in record.metrics  # what a host with initial weights does means nothing
