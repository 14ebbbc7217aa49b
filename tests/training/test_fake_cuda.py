"""The CUDA branches where there is no GPU: under FakeTensorMode a tensor has a device and a shape and no values, and an operation
on tensors of two devices raises. Forward passes, optimizers and the code around them, with everything made on the CPU and
moved when a run moves it. That no operation raises is what most tests assert; values, and backward passes, need a GPU
(tests/cuda)."""

import contextlib
import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from layergraft.config import metric_registry
from layergraft.config.compose import conf_dir
from layergraft.config.schema import Config, ProbeSpec
from layergraft.config.training_schema import OptimSpec, PhaseSpec, RegularizerSpec, ScheduleSpec, StrategySpec
from layergraft.data.batches import Batches, BatchSpec
from layergraft.data.digits import Digits
from layergraft.data.normalization import Normalization
from layergraft.donors import TrainedDonor
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.layer_architectures import Conv
from layergraft.hosts.norms import norm_paths, statistics_paths
from layergraft.hosts.sites import find_sites
from layergraft.metrics.tasks import Task
from layergraft.runs.similarity import _inputs
from layergraft.strategies.phases import make_plan, stage_roles
from layergraft.surgery import Parallel, Replace, calibrated, graft
from layergraft.surgery.calibrate import reconstruction_error
from layergraft.training import gradients
from layergraft.training.backend import Backend
from layergraft.training.evaluation import evaluating, measuring, record_activations
from layergraft.training.lightning_module import PlannedModule
from layergraft.training.optimizers import CLASSES
from layergraft.training.prefix_cache import FrozenPrefix
from layergraft.training.probes import Probes, ProbeTargets
from layergraft.training.weight_averaging import Averages

CUDA = torch.device("cuda", 0)
HOST = CifarResNet("resnet8", width=4)
SITE = "layer2.0.conv1"
ALL = StrategySpec("all", groups={"graft": ["graft"], "rest": [".*"]}, phases={"p": PhaseSpec(0, {"graft": 1.0, "rest": 1.0})})  # fmt: skip


class FakeCuda(FakeTensorMode):
    """Fakes have no values: a number that is read to Python (`item`, `float`, a condition) is a half, 1 or true."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 0.5 if dtype.is_floating_point else 1
        if func.name().startswith("aten::_fused_"):  # not all of these have a fake
            assert torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CUDA")
            assert {tensor.device for tensors in args for tensor in tensors if isinstance(tensor, torch.Tensor)} == {
                CUDA
            }
            return None
        return super().__torch_dispatch__(func, types, args, kwargs)


def moved(self, function, recurse=True):
    """nn.Module._apply, as it is for real tensors: a parameter that moves to another device stays the same object."""
    for child in self.children():
        child._apply(function)
    with torch.no_grad():
        for name, parameter in self._parameters.items():
            new = parameter if parameter is None else function(parameter)
            if parameter is not None and (new.stride(), new.dtype) == (parameter.stride(), parameter.dtype):
                parameter.fake_device = new.device
            elif parameter is not None:
                self._parameters[name] = nn.Parameter(new, parameter.requires_grad)
        self._buffers.update((name, function(buffer)) for name, buffer in self._buffers.items() if buffer is not None)
    return self


def copied(self, memo):
    """FakeTensor.__deepcopy__: torch's own corrupts memory."""
    if id(self) not in memo:
        new = self.detach().clone()
        memo[id(self)] = nn.Parameter(new, self.requires_grad) if isinstance(self, nn.Parameter) else new
    return memo[id(self)]


def on_cpu(logits_NC, y_N):
    """In place of a metric's function, which needs values: it is given all of a split on the CPU."""
    assert logits_NC.device.type == y_N.device.type == "cpu" and len(logits_NC) == len(y_N)
    return 0.5


@pytest.fixture(autouse=True)
def fake_cuda(monkeypatch):
    """Within a test, CUDA is there, as far as it goes without values: no backward pass, no random state."""
    monkeypatch.setattr(nn.Module, "_apply", moved)
    monkeypatch.setattr(FakeTensor, "__deepcopy__", copied)
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, inputs, **_: [torch.ones_like(x) for x in inputs])
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**34, 2**34))
    monkeypatch.setattr(torch, "equal", lambda a, b: a.shape == b.shape)
    known = {name: replace(of, function=of.function and on_cpu) for name, of in metric_registry._METRICS.items()}
    monkeypatch.setattr(metric_registry, "_METRICS", known)
    with FakeCuda(allow_non_fake_inputs=True):
        yield


@pytest.fixture
def made(images):
    """Function: -> a network with a donor in it and its module, on the CPU, and batches on CUDA; `move` does what Lightning does
    before training: the network to CUDA, and only then the optimizer."""

    def make(host=HOST, strategy=ALL, optim="adam", spec=None, batch=None, regularizer=None, task=Task.multi_class):
        data = replace(images(channels=1, size=8), task=task)
        if task is Task.multi_label:
            labels = {name: replace(split, y_N=np.eye(4, dtype=np.int64)[split.y_N]) for name, split in data.splits.items()}  # fmt: skip
            data = replace(data, **labels)
        spec = spec or Replace(channel_matching="project", adapter_init="random")
        intact = host.build(data.shape, data.num_classes, 0)
        grafted = graft(
            intact, [(find_sites(intact, data.shape)[SITE], nn.Conv2d(6, 8, 3, padding=1))], spec, data.shape
        )
        network = grafted.network
        roles = (
            host.roles
            | stage_roles(["layer1"])
            | grafted.roles
            | {"norm": norm_paths(network), "before": ["conv1"], "after": ["layer3"]}
        )
        names = [name for name, _ in network.named_parameters()]
        plan = make_plan(strategy, names, statistics_paths(network), roles, 4)
        batches = Batches.of(data, batch or BatchSpec(10), 0, "cuda")
        rates = OptimSpec(optim, 0.1, batch_size=10)
        regularizer = regularizer or RegularizerSpec()
        module = PlannedModule(network, plan, rates, ScheduleSpec("cosine", 4), regularizer, 4, task=task)
        module._trainer = SimpleNamespace(
            current_epoch=0,
            train_dataloader=batches.train,
            val_dataloaders=SimpleNamespace(images=batches.val, features=None),
            precision_plugin=SimpleNamespace(forward_context=contextlib.nullcontext),
            strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
            state=SimpleNamespace(fn="validate"),
            logger=None,
        )
        run = SimpleNamespace(data=data, intact=intact, grafted=grafted, network=network, plan=plan, batches=batches,
                              module=module, trainer=module._trainer)  # fmt: skip

        def move():
            module.to(CUDA)
            run.optimizer = module.configure_optimizers()
            run.trainer.optimizers = [run.optimizer]
            module.apply_phase(plan.phases[0], run.optimizer)
            return run

        run.move = move
        return run

    return make


def test_two_devices_in_one_operation_raise():
    with pytest.raises(RuntimeError, match="[Dd]evice"):
        torch.ones(2, device=CUDA) + torch.ones(2)
    with pytest.raises(RuntimeError, match="[Dd]evice"):
        HOST.build((1, 8, 8), 4, 0).to(CUDA)(torch.ones(2, 1, 8, 8))


@pytest.mark.parametrize("batch", [BatchSpec(10), BatchSpec(10, 2, shift=1, flip=True), BatchSpec(10, mixup=0.5)], ids=str)  # fmt: skip
def test_batches_lie_on_the_device(images, batch):
    batches = Batches.of(images(), batch, 0, "cuda")
    parts = [*batches.train, *batches.val, *batches.test, batches.val.first(7)]
    assert len(parts) == 4 + 3 and all(x.device == y.device == CUDA for x, y in parts)


class Moves(TorchDispatchMode):
    """Counts the tensors that go from the CPU to the device."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        if isinstance(given, torch.Tensor) and given.device == CUDA:
            self.number += any(isinstance(x, torch.Tensor) and x.device.type == "cpu" and x.ndim for x in args)
        return given


@pytest.mark.parametrize("batch, moved", [(BatchSpec(5), 1), (BatchSpec(5, shift=1, flip=True), 3), (BatchSpec(10, shift=1, flip=True), 3)], ids=str)  # fmt: skip
def test_an_epoch_is_moved_at_once(images, batch, moved):
    """The order, the offsets and which images are mirrored: not a copy for each batch, which would wait for the one before."""
    batches = Batches.of(images(), batch, 0, "cuda")
    with Moves() as moves:
        list(batches.train)
    assert moves.number == moved


def step(run, x_NCHW, y_N):
    """One step, with gradients that are made up."""
    loss = run.module.training_step((x_NCHW, y_N), 0)
    assert loss.device == CUDA
    for parameter in run.network.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    run.module.configure_gradient_clipping(run.optimizer, 1.0)
    run.module.on_before_optimizer_step(run.optimizer)
    run.optimizer.step()


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_optimizer_steps_and_freezes(made, name):
    run = made(optim=name).move()
    run.module.on_train_batch_start(None, 0)
    for x, y in run.batches.train:
        step(run, x, y)


@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_dir() / "strategy").glob("*.yaml")))
def test_every_strategy_trains_and_validates(made, config, name):
    strategy = config(f"strategy={name}", "schedule.epochs=4").strategy
    if name == "surgical":
        strategy.groups["tuned"] = ["layer2"]
    run = made(strategy=strategy, regularizer=RegularizerSpec(label_smoothing=0.1, ema=0.9))
    averages = Averages(run.network, run.module.regularizer, 4)
    run.move()
    averages.on_train_start(run.trainer, run.module)
    assert {tensor.device for tensor in averages.average.values()} == {CUDA}
    for phase in run.plan.phases:
        run.module.apply_phase(phase, run.optimizer)
        run.module.on_train_epoch_start()  # learning rates by tensor
        run.module.on_train_batch_start(None, 0)
        step(run, *next(iter(run.batches.train)))
        averages.on_train_batch_end(run.trainer, run.module)
        averages.on_validation_start(run.trainer, run.module)
        run.module.on_validation_epoch_start()
        for number, batch in enumerate(run.batches.val):
            run.module.validation_step(batch, number)
        assert run.module._judged.sums[0].device == CUDA and set(run.module.evaluated()) == {
            "acc",
            "loss",
            "balanced_acc",
            "ece",
            "auc",
            "f1",
            "sensitivity",
            "specificity",
        }
        averages.on_validation_end(run.trainer, run.module)
    run.module._losses.append(torch.ones(()))  # as a checkpoint gives it
    run.module.mean_loss()
    averages.finish(run.module, run.batches.train)


def test_averages_by_epoch_measure_their_batch_norms(made):
    run = made(regularizer=RegularizerSpec(swa=0.5))
    averages = Averages(run.network, run.module.regularizer, 4)
    run.move()
    averages.on_train_start(run.trainer, run.module)
    run.trainer.current_epoch = 3
    averages.on_train_epoch_end(run.trainer, run.module)
    run.module.curves = [{"epoch": epoch} for epoch in range(4)]
    averages.finish(run.module, run.batches.train)
    assert all(buffer.device == CUDA for buffer in run.network.buffers())


@pytest.mark.parametrize("task", [Task.ordinal, Task.multi_label])
def test_other_tasks(made, task):
    run = made(task=task).move()
    x, y = next(iter(run.batches.val))
    for loss in (task.loss(run.network(x), y, label_smoothing=0.1), task.loss(run.network(x), y, reduction="sum")):
        assert loss.device == CUDA
    run.module.training_step((x, y), 0)
    run.module.validation_step((x, y), 0)
    assert run.module._judged.logits[0][0].device == run.module._judged.logits[0][1].device == CUDA
    assert run.module.evaluated()["mae" if task is Task.ordinal else "auc"] == 0.5


def test_learning_rates_by_tensor(made):
    run = made().move()
    parameters = dict(run.network.named_parameters())
    grads = gradients.measured(run.network, run.batches.train, parameters)
    assert set(gradients.rgn_weights(grads, parameters)) == set(parameters)


def test_probes_look(made):
    run = made(spec=Parallel(gate=0.5, channel_matching="project", adapter_init="random"))
    (done,) = run.grafted.grafts
    donors = [
        name for name, _ in run.network.named_parameters() if name.startswith(next(iter(done.donor_paths.values())))
    ]
    places = {SITE: (done.site.path, done.placed.replaced[-1])}
    subject = ProbeTargets(
        run.grafted.watched(find_sites(run.intact, run.data.shape)), places, run.intact, donors, done.placed.gates
    )
    probes = Probes(ProbeSpec([0, -1]), run.network, subject, run.batches.val.first(20), run.batches.val, 4)
    run.move()
    probes.look(run.module, 0)
    run.module.curves = [{"epoch": epoch} for epoch in range(4)]
    probes.look(run.module, -1)
    first, last = probes.points
    assert done.placed.gates and {"loss", "intact/loss", "drift", f"cka/{SITE}/out"} < set(first) and last["epoch"] == 4


@pytest.mark.parametrize("mode", [evaluating, measuring])
def test_activations_are_seen(made, mode):
    run = made().move()
    seen = record_activations(run.network, ["layer2", "fc"], *run.batches.val.first(20), mode)
    assert set(seen.activations) == {"layer2", "fc"} and seen.activations["fc"].mean


@pytest.mark.parametrize("start", ["least_squares", "identity", "random"])
@pytest.mark.parametrize("calibrate", ["none", "batch_norm", "moments", "lsuv"])
def test_calibration(made, calibrate, start):
    spec = Replace(channel_matching="project", adapter_init=start, calibrate=calibrate)
    run = made(spec=spec)
    run.grafted.host.to(CUDA)
    run.grafted.network.to(CUDA)
    x_NCHW = run.batches.val.first(20)[0]
    fitted = calibrated(run.grafted, x_NCHW, spec)
    assert all(tensor.device == CUDA for tensor in fitted.network.state_dict().values())
    assert reconstruction_error(fitted, fitted.grafts[0], x_NCHW) == 1.0


def test_what_reaches_the_site_is_measured_there_and_compared_on_the_cpu(made):
    run = made()
    at = run.network.get_submodule(next(iter(run.grafted.grafts[0].donor_paths.values())))
    for mode in (evaluating, measuring):
        inputs, outputs = _inputs(
            run.network, at, copy.deepcopy(at), run.data, Normalization.of(run.data.train), Config(), CUDA, mode
        )
        assert inputs.device == outputs.device == torch.device("cpu") and len(inputs) == len(outputs) == 40
        assert {tensor.device for tensor in run.network.state_dict().values()} == {torch.device("cpu")}  # as it was


@pytest.mark.parametrize("host", [HOST, TorchvisionResNet("resnet18", width=4, stem="small")], ids=lambda host: host.name)  # fmt: skip
def test_the_frozen_prefix_is_kept(made, host):
    still = StrategySpec("s", groups={"still": ["conv1", "bn1", "layer1"], "graft": ["graft"], "rest": [".*"]},
                         phases={"p": PhaseSpec(0, {"graft": 1.0, "rest": 1.0}, ["still"])})  # fmt: skip
    run = made(host, still).move()
    prefix = FrozenPrefix(None)
    with torch.no_grad():
        prefix._keep(run.trainer, run.module)
    (used,) = prefix.used
    assert used["through"].startswith("layer1") and used["bytes"] > 0
    for features, y in (next(iter(run.batches.train)), (run.batches.train.features.take(slice(0, 5)), run.batches.train.y_N[:5])):  # fmt: skip
        assert features.device == y.device == run.module(features).device == CUDA


@pytest.mark.parametrize("spec", [Replace(channel_matching="project", calibrate="moments", adapter_init=start) for start in ("random", "identity")], ids=lambda spec: spec.adapter_init)  # fmt: skip
def test_surgery_on_a_network_that_lies_there(spec):
    host = HOST.build((1, 8, 8), 4, 0).to(CUDA)
    made = graft(
        host, [(find_sites(host, (1, 8, 8))[SITE], nn.Conv2d(6, 8, 3, padding=1, device=CUDA))], spec, (1, 8, 8)
    )
    assert {tensor.device for tensor in made.network.state_dict().values()} == {CUDA}


def test_what_is_drawn_on_the_cpu_seeds_no_gpu(made, monkeypatch):
    def seeded(seed):
        raise AssertionError("a GPU's generator is seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
    made()
    made(TorchvisionResNet("resnet18", width=4))
    TrainedDonor(data=Digits()).network(Conv(3, 4, 3, 1, 1), 1, 5)


@pytest.mark.parametrize("precision, last", [("bf16_mixed", True), ("float32", False)])
def test_bf16_lies_with_its_channels_last(precision, last):
    network = HOST.build((1, 8, 8), 4, 0).to(CUDA)
    Backend("cuda", precision, channels_last=None).lay_out(network)
    assert network.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last) == last
