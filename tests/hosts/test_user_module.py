"""A module of one's own as the host: `Host(module, ...)` through the Python API, its identity, and what it cannot be."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from layergraft import Data, Donor, Host, UserError, fit, graft
from layergraft.hosts.user_module import GIVEN, give

SMALL = {"data": Data("digits", train_size=50), "schedule": {"epochs": 3}, "optim": {"batch_size": 25},
         "exec": {"threads": 1, "device": "cpu", "similarity": {"resamples": 0}}}  # fmt: skip


class Unit(nn.Module):
    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.a, self.norm = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.scale = nn.Parameter(torch.full((outside, 1, 1), 0.5))
        self.skip = nn.Conv2d(inside, outside, 1, stride) if inside != outside else nn.Identity()

    def forward(self, x):
        return self.skip(x) + self.scale * torch.relu(self.norm(self.a(x)))


class Own(nn.Module):
    def __init__(self, classes=10, slope=0.0):
        super().__init__()
        self.lift = nn.Conv2d(1, 4, 3, padding=1)
        self.one, self.two = Unit(4, 4), Unit(4, 8, 2)
        self.top, self.slope = nn.Linear(8, classes), slope

    def forward(self, x):
        x = self.two(self.one(self.lift(x)))
        return self.top(nn.functional.leaky_relu(x, self.slope).mean((2, 3)))


@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return Own()


def host(network):
    return Host(network, blocks=["one", "two"], stages=["one", "two"], stem="lift", head="top")


@pytest.mark.parametrize("strategy", ["freeze", "gradual"])
def test_fit_trains_a_copy_and_the_run_has_its_network(strategy, network):
    before = copy.deepcopy(network.state_dict())
    run = fit(host(network), "random", site="two", strategy=strategy, **SMALL)
    assert run.record.kinds["host"] == "module" and run.record.axes["host"] == "Own"
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    trained = run.network()
    assert isinstance(trained, Own) and trained(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert not torch.equal(trained.top.weight, network.top.weight)
    groups = list(run.record.plan["groups"])
    assert groups == (["graft", "rest"] if strategy == "freeze" else ["all.stem", "all.one", "all.two", "all.head"])
    assert fit(host(network), "random", site="two", strategy=strategy, **SMALL).record.started == run.record.started


def test_the_hosts_weights_are_the_modules_and_its_blocks_are_copied_with_fresh_ones(network):
    made = graft(host(network), "random", site="two", data="digits")
    assert torch.equal(made.network.one.a.weight, network.one.a.weight)
    assert not torch.equal(made.network.two.a.weight, network.two.a.weight)
    assert made.network.two.a.weight.shape == network.two.a.weight.shape
    made = graft(host(network), "random", site="late", data="digits", surgery="insert")  # a convolution, in a block
    assert made.network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("surgery", ["replace", "parallel"])
def test_a_block_of_ones_own_goes_in_where_the_host_has_one_like_it(surgery, network):
    mine = Unit(4, 8, 2)
    made = graft(host(network), Donor(mine), site="two", data="digits", surgery=surgery)
    inside = made.network.two if surgery == "replace" else made.network.two.donor
    assert all(torch.equal(tensor, mine.state_dict()[name]) for name, tensor in inside.state_dict().items())
    with pytest.raises(UserError, match="is no layer like the block there"):
        graft(host(network), Donor(mine), site="one", data="digits")


def key(module):
    return give(module, head="top")["network"]


def test_networks_that_differ_in_anything_have_other_digests(network):
    class Other(Own):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(0)
    first = key(network)
    assert key(copy.deepcopy(network)) == key(copy.deepcopy(network).eval()) == first
    other, slope, weight = Other(), Own(slope=0.1), copy.deepcopy(network)
    for changed in (other, slope):
        changed.load_state_dict(network.state_dict())
    weight.top.bias.data[0] += 1e-6
    assert len({first, key(other), key(slope), key(weight)}) == 4
    assert network.training and first in GIVEN


TIED = Own()
TIED.two.skip.weight = TIED.lift.weight


@pytest.mark.parametrize(
    "make, line",
    [
        (lambda n: Host(3), "Host takes a name or a module of torch, not a int"),
        (lambda n: Host(n), r"Host\(Own\) needs the module path of its classifier: head='top'\?"),
        (lambda n: Host(n, head="tp"), r"unknown module in Host\(Own\), head: 'tp'; did you mean 'top'\?"),
        (lambda n: Host(TIED, head="top"), "lift.weight and two.skip.weight are one tensor"),
        (lambda n: graft(Host(n, head="top", blocks="top"), "random", site="late", data="digits"), "top is no block"),
        (lambda n: graft(Host(n, head="top"), "random", site="late", data="digits_0_to_4"), "the host Own gives 10 logits an image, but the data have 5 classes"),
        (lambda n: graft(Host(n, head="top"), "random", site="late", data="textures"), r"the host Own cannot take images of 3 x 32 x 32 \(channels, height, width\)"),
        (lambda n: graft(Host(n, head="top"), "random", site="two", data="digits"), "unknown site in Own: 'two'"),
        (lambda n: graft(Host(n, head="top", weights="x.pt"), "random", data="digits"), "host.weights is 'x.pt', but a module has its own"),
        (lambda n: graft("module", "random", data="digits"), "host=module needs a module, which only Python can give"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_one_line(make, line, network):
    with pytest.raises(UserError, match=line) as raised:
        make(network)
    assert "\n" not in str(raised.value)


def test_the_command_line_does_not_offer_it(command, network):
    code, out, err = command("plan", "host=module")
    assert code == 2 and "which only Python can give" in err
    assert "module" not in command("plan", "host=modul")[2].partition("There are")[2]
    assert "module " not in command("train", "--help")[1].partition("host=\n")[2].partition("donor=\n")[0]


def test_another_process_says_which_host_has_to_be_made_first(network):
    run = fit(host(network), "random", site="two", strategy="freeze", **SMALL)
    done = subprocess.run([sys.executable, "-m", "layergraft", "export", run.key], capture_output=True, text=True)
    line = "error: the host Own is a module that this process does not have: call layergraft.Host(module, ...) with it here first"
    assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert json.loads((run.folder / "record.json").read_text())["config"]["host"]["classifier"] == ["top"]
    assert run.record.host == {"head": "kept", "weights": "Own"}  # not initial ones


def test_torchvisions_blocks_need_no_naming(network):
    from torchvision.models import resnet18

    made = graft(
        Host(resnet18(num_classes=10), stem=["conv1", "bn1"], head="fc", in_channels=3),
        "random",
        site="layer2.0",
        data="digits",
    )
    assert made.grafts[0].site.kind == "block" and made.roles["graft"] == ["layer2.0"]
