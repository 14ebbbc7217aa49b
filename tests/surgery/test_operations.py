"""Surgery: a donor in its place, the host as it was; what must be exact is exact."""

import copy

import pytest
import torch
from torch import nn

from conftest import HOSTS
from layergraft import surgery
from layergraft.errors import UserError
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.layer_architectures import Stem, architecture_of
from layergraft.hosts.sites import find_sites
from layergraft.surgery import Insert, Parallel, Replace

IMAGE = (3, 32, 32)
HOST = TorchvisionResNet("resnet18", width=4)
ZERO_GATED = [Insert(gate=0.0), Insert(position="before", gate=0.0), Parallel(gate=0.0)]


def name_of(spec):
    return "-".join(str(value) for value in vars(spec).values())


def lived_in(spec, image=IMAGE):
    """A host as after some training: statistics and affine parameters of its norms are no longer their start."""
    host = spec.build(image, 5, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in host.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
    return host.eval()


def own_layer(host, site, stem=False):
    layer = host.get_submodule(site.path)
    if not stem:
        return layer
    made = Stem(architecture_of(layer), "batch").build()
    made.conv, made.norm = layer, host.get_submodule(site.norm)
    return made


def graft(host, sites, donors, spec=None, image=IMAGE):
    return surgery.graft(
        host,
        [(find_sites(host, image)[path], donor) for path, donor in zip(sites, donors, strict=True)],
        spec or Replace(),
        image,
    )


def one_of_each(host, sites):
    """A site, the last, of each structure that a host repeats."""
    return list(
        {(architecture_of(host.get_submodule(path)), site.in_shape): site for path, site in sites.items()}.values()
    )


def all_of(host, sites):
    """Lists of sites to graft at: one of each structure by itself, then all of a kind together. The deepest hosts repeat
    the structures of resnet50 and resnet20."""
    alone = [[site] for site in one_of_each(host, sites)] if len(sites) < 100 else []
    return alone + [[site for site in sites.values() if site.kind == kind] for kind in ("conv", "block", "stage")]


REPEATED = ("resnet152", "wide_resnet50_2", "resnet110")  # structures of other hosts, more often or wider


@pytest.mark.parametrize(
    "spec",
    [pytest.param(spec, marks=pytest.mark.slow) if spec.name in REPEATED else spec for spec in HOSTS],
    ids=lambda spec: spec.name,
)
def test_its_own_layer_leaves_the_logits_bit_identical_at_every_site(spec):
    image = (3, 16, 16)
    host = lived_in(spec, image)
    x = torch.randn(2, *image)
    with torch.no_grad():
        before = host(x)
        for sites in all_of(host, find_sites(host, image)):
            for stem in {False, sites[0].kind == "conv"}:
                donors = [(site, own_layer(host, site, stem)) for site in sites]
                made = surgery.graft(host, donors, Replace(), image).network
                assert torch.equal(made(x), before), ([site.path for site in sites], stem)


@pytest.mark.parametrize("options", [{"norm": "group"}, {"skips": False}, {"stem": "imagenet"}], ids=str)
def test_its_own_layer_in_other_hosts(options):
    host = lived_in(TorchvisionResNet("resnet50", width=8, **options))
    x = torch.randn(2, *IMAGE)
    with torch.no_grad():
        before = host(x)
        for sites in all_of(host, find_sites(host, IMAGE)):
            made = surgery.graft(host, [(site, own_layer(host, site)) for site in sites], Replace(), IMAGE).network
            assert torch.equal(made(x), before), [site.path for site in sites]


@pytest.mark.parametrize("operation", ZERO_GATED, ids=name_of)
@pytest.mark.parametrize(
    "spec", [HOST, TorchvisionResNet("resnet50", width=4), CifarResNet("resnet20", width=4)], ids=lambda s: s.name
)
def test_behind_a_zero_gate_the_logits_are_bit_identical_at_every_site(spec, operation):
    host = lived_in(spec)
    x = torch.randn(2, *IMAGE)
    with torch.no_grad():
        before = host(x)
        for sites in all_of(host, find_sites(host, IMAGE)):
            paths = [site.path for site in sites]
            donors = [surgery.slot_of(host, site, operation, IMAGE).conv().build() for site in sites]
            made = surgery.graft(host, list(zip(sites, donors, strict=True)), operation, IMAGE)
            assert torch.equal(made.network(x), before), paths
            gate = made.network.get_parameter(made.roles["adapter"][-1])
            gate.fill_(1.0)
            assert not torch.equal(made.network(x), before), paths  # the donor is there


def test_an_ungated_insert_is_a_link_in_the_chain():
    host = lived_in(HOST)
    x = torch.randn(2, *IMAGE)
    donor = nn.Conv2d(4, 4, 3, padding=1)
    made = graft(host, ["layer1.0"], [donor], Insert()).network
    stem = host.maxpool(host.relu(host.bn1(host.conv1(x))))
    expected = host.fc(
        host.avgpool(host.layer4(host.layer3(host.layer2(host.layer1[1](donor(host.layer1[0](stem))))))).flatten(1)
    )
    torch.testing.assert_close(made(x), expected)
    first = graft(host, ["layer1.0"], [donor], Insert(position="before")).network
    assert not torch.equal(first(x), made(x))


def test_an_ungated_branch_is_added():
    host = lived_in(HOST)
    x = torch.randn(2, *IMAGE)
    donor = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    made = graft(host, ["conv1"], [donor], Parallel()).network
    summed = copy.deepcopy(host)
    with torch.no_grad():
        summed.conv1.weight.add_(donor.weight)
        torch.testing.assert_close(made(x), summed(x), rtol=1e-4, atol=1e-5)


def test_host_and_donor_stay_as_they_were():
    host, donor = HOST.build(IMAGE, 5, seed=0), nn.Conv2d(3, 4, 5, stride=2, padding=1, bias=True)
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    weight = donor.weight.clone()
    made = graft(host, ["conv1"], [donor], Replace(bias="fold"))
    assert torch.equal(made.network.conv1.weight, donor.weight)
    with torch.no_grad():
        for tensor in made.network.state_dict().values():
            tensor.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())
    assert torch.equal(donor.weight, weight) and (donor.stride, donor.padding, donor.bias is not None) == (
        (2, 2),
        (1, 1),
        True,
    )


def test_stride_and_padding_follow_the_site():
    host = lived_in(HOST)
    made = graft(host, ["conv1"], [nn.Conv2d(3, 4, 7, stride=2, padding=3)])
    assert (made.network.conv1.stride, made.network.conv1.padding) == ((1, 1), (3, 3))
    assert made.grafts[0].did[:1] == ("stride 2 made 1",)
    assert made.network(torch.randn(2, *IMAGE)).shape == (2, 5)


OPERATIONS = [
    Replace(),
    Replace(channel_matching="project", adapter_init="identity"),
    Replace(calibrate="moments"),
    Replace(bias="fold"),
    Insert(position="before", channel_matching="project", adapter_init="random"),
    Insert(gate=0.0, channel_matching="project", adapter_init="identity"),
    Parallel(gate=0.1, channel_matching="project", adapter_init="identity"),
    Insert(calibrate="batch_norm"),
]


@pytest.mark.parametrize("kind", ["conv", "stem", "block"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=name_of)
def test_undo_gives_back_the_original_state_dict(operation, kind):
    host = lived_in(HOST)
    site = find_sites(host, IMAGE)["layer2.0.conv1"]
    slot = surgery.slot_of(host, site, operation, IMAGE)
    donor = {
        "conv": lambda: slot.conv(bias=True),
        "stem": lambda: Stem(slot.conv(bias=True), "batch"),
        "block": slot.block,
    }[kind]().build()
    made = surgery.graft(host, [(site, donor)], operation, IMAGE)
    made = surgery.calibrated(made, torch.randn(40, *IMAGE), operation)
    undone = made.undone()
    assert undone.state_dict().keys() == host.state_dict().keys()
    assert all(torch.equal(tensor, host.state_dict()[name]) for name, tensor in undone.state_dict().items())
    x = torch.randn(2, *IMAGE)
    with torch.no_grad():
        assert torch.equal(undone.eval()(x), host(x)) and made.network.training == host.training


def test_undo_after_training_keeps_what_was_trained_elsewhere():
    host = lived_in(HOST)
    made = graft(host, ["layer1.0.conv1"], [nn.Conv2d(4, 4, 3, padding=1)], Parallel(gate=0.0))
    with torch.no_grad():
        made.network.fc.weight.add_(1)
        made.network.layer1[0].conv1.host.weight.add_(1)
    undone = made.undone()
    assert torch.equal(undone.fc.weight, host.fc.weight + 1)
    assert torch.equal(undone.layer1[0].conv1.weight, host.layer1[0].conv1.weight + 1)  # it stood beside the donor


def test_every_parameter_is_in_one_part():
    host = lived_in(HOST)
    spec = Parallel(gate=0.0, channel_matching="project", adapter_init="identity")
    made = graft(host, ["layer2.1"], [nn.Conv2d(3, 16, 3)], spec)
    assert made.parts["donor"] == ("layer2.1.donor.donor.weight", "layer2.1.donor.donor.bias")
    assert made.parts["adapter"] == ("layer2.1.gate", "layer2.1.donor.before.weight", "layer2.1.donor.after.weight")
    assert made.parts["head"] == ("fc.weight", "fc.bias")
    assert "layer2.0.conv2.weight" in made.parts["host before"] and "conv1.weight" in made.parts["host before"]
    assert "layer3.0.conv1.weight" in made.parts["host after"]
    names = [name for names in made.parts.values() for name in names]
    assert sorted(names) == sorted(name for name, _ in made.network.named_parameters())
    assert made.roles == {
        "graft": ["layer2.1.donor.donor"],
        "adapter": ["layer2.1.donor.before", "layer2.1.donor.after", "layer2.1.gate"],
        "calibration": [],
    }
    assert made.num_added == 1 + 3 * 8 + 16 * 8 + (3 * 16 * 9 + 16)
    own = [f"layer2.1.{name}" for name, _ in host.layer2[1].named_parameters()]
    assert sorted(made.moved.values()) == sorted(own)
    assert made.moved["layer2.1.host.conv1.weight"] == "layer2.1.conv1.weight"


def test_a_stem_takes_convolution_and_norm():
    host = lived_in(HOST)
    donor = Stem(architecture_of(host.conv1), "batch").build()
    made = graft(host, ["conv1"], [donor])
    assert made.roles["graft"] == ["conv1", "bn1"] and torch.equal(
        made.network.bn1.running_mean, donor.norm.running_mean
    )
    assert made.parts["donor"] == ("conv1.weight", "bn1.weight", "bn1.bias") and not made.parts["host before"]


def test_several_sites_at_once():
    host = lived_in(HOST)
    donors = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)]
    made = graft(host, ["conv1", "layer1.0.conv1"], donors)
    assert torch.equal(made.network.conv1.weight, donors[0].weight) and torch.equal(
        made.network.layer1[0].conv1.weight, donors[1].weight
    )
    assert [change.site.path for change in made.grafts] == ["conv1", "layer1.0.conv1"]
    assert torch.equal(made.undone()(torch.ones(2, *IMAGE)), host(torch.ones(2, *IMAGE)))


@pytest.mark.parametrize(
    "sites, message",
    [
        (["conv1", "conv1"], "the site conv1 is given twice"),
        (["layer1.0", "layer1.0.conv1"], "the site layer1.0.conv1 is inside layer1.0, which is a site itself"),
        (["layer1.0.conv1", "layer1"], "the site layer1.0.conv1 is inside layer1, which is a site itself"),
    ],
)
def test_sites_that_are_in_each_others_way(sites, message):
    host = lived_in(HOST)
    with pytest.raises(UserError, match=message):
        graft(host, sites, [host.get_submodule(path) for path in sites])


def test_layer1_and_layer10_are_not_inside_each_other():
    host = lived_in(CifarResNet("resnet110", width=4))
    sites = ["layer1.1", "layer1.10"]
    assert graft(host, sites, [host.get_submodule(path) for path in sites]).network


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", ["conv", "stem"])
def test_a_folded_bias_is_a_kept_bias(mode, kind):
    host = lived_in(HOST)
    x = torch.randn(8, *IMAGE)
    for path in ("conv1", "layer2.0.conv1", "layer2.0.conv2", "layer4.0.downsample.0"):
        conv = surgery.slot_of(host, find_sites(host, IMAGE)[path], Replace(), IMAGE).conv(bias=True)
        donor = (conv if kind == "conv" else Stem(conv, "batch")).build()
        kept, folded, dropped = (
            graft(host, [path], [donor], Replace(bias=bias)).network for bias in ("keep", "fold", "drop")
        )
        for network in (kept, folded, dropped):
            network.train(mode == "train")
        with torch.no_grad():
            torch.testing.assert_close(folded(x), kept(x), rtol=0, atol=1e-5)
            assert mode == "train" or not torch.allclose(dropped(x), kept(x), atol=1e-4)
        assert folded.get_submodule(path).bias is None and kept.get_submodule(path).bias is not None


def test_a_bias_of_a_link_between_convolution_and_norm_can_be_folded():
    host, donor = lived_in(HOST), nn.Conv2d(4, 4, 3, padding=1)
    kept, folded = (graft(host, ["conv1"], [donor], Insert(bias=bias)).network for bias in ("keep", "fold"))
    x = torch.randn(4, *IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), kept(x), rtol=0, atol=1e-5)


def test_what_was_done_is_a_table():
    made = graft(
        lived_in(HOST), ["conv1"], [nn.Conv2d(1, 4, 3)], Replace(channel_matching="project", adapter_init="identity")
    )
    lines = str(made).splitlines()
    assert (
        lines[0] == "site      conv1: conv, 3 x 32 x 32 -> 4 x 32 x 32"
        and "adapters  conv1.before, conv1.after" in lines
    )
    assert "parameters added: -49" in lines and len([line for line in lines if " tensors " in line]) == 6


def test_a_fold_needs_a_batch_norm():
    for host, spec in (
        (lived_in(TorchvisionResNet("resnet18", width=4, norm="group")), Replace(bias="fold")),
        (lived_in(HOST), Insert(bias="fold", gate=0.0)),
        (lived_in(HOST), Replace(bias="fold", channel_matching="project", adapter_init="identity")),
    ):
        with pytest.raises(UserError, match="surgery.bias=fold: no batch norm follows the donor at conv1 directly"):
            graft(
                host,
                ["conv1"],
                [nn.Conv2d(host.conv1.in_channels if spec.name == "replace" else 4, 4, 3, padding=1)],
                spec,
            )
