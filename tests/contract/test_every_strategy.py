"""What every strategy in conf/strategy promises: a new file there is tested without a new test."""

import pytest
import pytorch_lightning as pl
import torch

from conftest import CPU
from layergraft.config.compose import conf_dir
from layergraft.config.training_schema import OptimSpec, ScheduleSpec
from layergraft.data.batches import Batches, BatchSpec
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.norms import norm_paths, statistics_paths
from layergraft.hosts.sites import find_sites, resolve
from layergraft.runs.plan import plan_run
from layergraft.strategies.phases import make_plan, stage_roles
from layergraft.surgery import Replace, graft
from layergraft.training.fit import fit
from layergraft.training.recipe import Recipe

STRATEGIES = sorted(path.stem for path in (conf_dir() / "strategy").glob("*.yaml"))
EPOCHS = 4
HOST = TorchvisionResNet("resnet18", width=4, stem="small")


class Watch(pl.Callback):
    """Compares the network with itself before and after each epoch."""

    def __init__(self):
        self.epochs = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            self.before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}

    def on_train_epoch_end(self, trainer, module):
        now, state = module.network.state_dict(), trainer.optimizers[0].state
        moved = {name for name, tensor in now.items() if not torch.equal(tensor, self.before[name])}
        stateful = {name for name, parameter in module.network.named_parameters() if state.get(parameter)}
        self.epochs.append((module.phase, moved, stateful))


@pytest.fixture
def grafted(images):
    data = images(channels=1, size=8)
    host = HOST.build(data.shape, data.num_classes, seed=0)
    torch.manual_seed(3)
    site = find_sites(host, data.shape)["layer2.0.conv2"]
    made = graft(
        host,
        [(site, torch.nn.Conv2d(6, 8, 3, padding=1))],
        Replace(channel_matching="project", adapter_init="random", calibrate="moments"),
        data.shape,
    )
    return data, made


def plan_of(strategy, made):
    network, parts = made.network, made.parts
    roles = {**HOST.roles, **stage_roles(["layer1", "layer2"]), **made.roles, "norm": norm_paths(network)}
    roles |= {"before": parts["host before"], "after": parts["host after"]}
    names = [name for name, _ in network.named_parameters()]
    return make_plan(strategy, names, statistics_paths(network), roles, EPOCHS)


@pytest.mark.parametrize(
    "optim", [OptimSpec("adamw", 0.01, weight_decay=0.1), OptimSpec("sgd", 0.1, weight_decay=0.1)], ids=str
)
@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_frozen_is_byte_identical_and_the_rest_moves(name, optim, grafted, config):
    data, made = grafted
    strategy = config(f"strategy={name}", f"schedule.epochs={EPOCHS}").strategy
    plan, watch = plan_of(strategy, made), Watch()
    batches = Batches.of(data, BatchSpec(10), 0, "cpu")
    fit(made.network, plan, batches, Recipe(optim, ScheduleSpec(epochs=EPOCHS)), CPU, callbacks=[watch])
    assert len(watch.epochs) == EPOCHS
    for phase, moved, stateful in watch.epochs:
        for group, names in plan.groups.items():
            if not phase.trains(group):
                assert not moved & set(names), f"{group} is frozen in phase {phase.name}"
                assert not stateful & set(names), f"{group} is frozen and has optimizer state in phase {phase.name}"
            elif strategy.tensor_lr == "none":
                assert set(names) <= stateful
                assert set(names) <= moved, f"{group} learns in phase {phase.name}"
        for path, group in plan.norms.items():
            statistics = {f"{path}.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
            assert statistics <= moved if group in phase.batch_norm_statistics else not statistics & moved


@pytest.mark.parametrize(
    "host", ["resnet20", *(pytest.param(h, marks=pytest.mark.slow) for h in ("resnet18", "resnet50"))]
)
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_a_run_at_every_depth_and_site(name, host, config):
    keys = set()
    for site in ("early", "late"):
        run = plan_run(config(f"strategy={name}", f"host={host}", f"site={site}", "host.width=16"))
        keys.add(run.key)
        in_groups = [parameter for names in run.strategy.groups.values() for parameter in names]
        assert sorted(in_groups) == sorted(run.parameters)
    assert len(keys) == 2


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_a_run_without_a_graft_the_same_at_every_site(name, config):
    runs = [plan_run(config(f"strategy={name}", "donor=none", f"site={site}")) for site in ("early", "late")]
    assert len({run.key for run in runs}) == 1 and runs[0].grafts == ()
    in_groups = [parameter for names in runs[0].strategy.groups.values() for parameter in names]
    assert sorted(in_groups) == sorted(runs[0].parameters)
    trained = {group for phase in runs[0].strategy.phases for group in phase.lr if phase.trains(group)}
    assert any(runs[0].strategy.groups[group] for group in trained)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_takes_group_norm_and_a_stem(name, config):
    assert plan_run(config(f"strategy={name}", "host=resnet20", "host.norm=group", "donor.kind=stem", "site=conv1")).key


@pytest.mark.parametrize("name", STRATEGIES)
def test_calibration_learns_where_a_strategy_promises_that_everything_or_the_rest_does(name, config):
    plan = plan_run(config(f"strategy={name}", "surgery.calibrate=moments", "site=late")).strategy
    (group,) = (group for group, names in plan.groups.items() if any(".affine." in n for n in names))
    text = (conf_dir() / "strategy" / f"{name}.yaml").read_text().splitlines()[0]
    promised = any(words in text for words in ("everything", "the rest", "each ", "by stage"))
    assert any(phase.trains(group) for phase in plan.phases) == promised, text


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_says_where_it_is_from(name):
    text = (conf_dir() / "strategy" / f"{name}.yaml").read_text()
    if name in ("gradual", "discriminative", "lp_ft", "l2_sp", "surgical", "auto_rgn"):
        assert ", 20" in text  # author, title, year


def test_roles_before_and_after_are_the_forward_passes(grafted):
    _, made = grafted
    assert resolve(find_sites(made.host, made.image), "layer2.0.conv2", "resnet18").path == "layer2.0.conv2"
    before, after = made.parts["host before"], made.parts["host after"]
    assert "layer2.0.bn1.weight" in before and "layer2.0.bn2.weight" in after and "fc.weight" not in after
    assert CifarResNet("resnet8").roles == HOST.roles
