"""Calibration: statistics and adapters fitted to the host's activations, checked against what they should be."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from layergraft import surgery
from layergraft.errors import UserError
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.layer_architectures import Stem
from layergraft.hosts.norms import batch_norms
from layergraft.hosts.sites import find_sites
from layergraft.surgery import Insert, Parallel, Replace
from layergraft.surgery.calibrate import passing, reconstruction_error
from layergraft.training.evaluation import measuring, reestimate
from surgery.test_operations import HOST, IMAGE, lived_in, one_of_each

X = torch.randn(96, *IMAGE, generator=torch.Generator().manual_seed(1))


def operated(host, path, donor, spec):
    made = surgery.graft(host, [(find_sites(host, IMAGE)[path], donor)], spec, IMAGE)
    return surgery.calibrated(made, X, spec)


def outputs(network, path):
    with measuring(network), torch.no_grad():
        return torch.cat([made for _, made in passing(network, path, [X])])


def test_re_estimation_restores_the_statistics_of_an_intact_host():
    host = HOST.build(IMAGE, 5, seed=0)
    with torch.no_grad():
        reestimate(host, batch_norms(host), [X])  # what they are on these images
        host.eval()
        wanted, logits = {name: t.clone() for name, t in host.state_dict().items()}, host(X)
        spoiled = lived_in(HOST)  # stale statistics; the weights of its convolutions are the host's
        spoiled.load_state_dict({**wanted, **{n: t for n, t in spoiled.state_dict().items() if "running" in n}})
        assert not torch.allclose(spoiled(X), logits, atol=0.1)
        site = find_sites(spoiled, IMAGE)["layer1.0.conv1"]
        made = surgery.graft(
            spoiled, [(site, spoiled.get_submodule(site.path))], Replace(calibrate="batch_norm"), IMAGE
        )
        network = surgery.calibrated(made, X, Replace(calibrate="batch_norm")).network
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(network(X), logits, rtol=1e-4, atol=1e-5)
    assert all(module.momentum == 0.1 for module in network.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize("kept", [3, 12])
def test_principal_channels_do_not_hang_on_the_signs_that_a_library_gives(monkeypatch, kept):
    from layergraft.surgery import calibrate

    host = lived_in(HOST).eval()
    made = surgery.graft(
        host,
        [(find_sites(host, IMAGE)["layer2.0.conv1"], nn.Conv2d(3, 8, 3))],
        Replace(channel_matching="project"),
        IMAGE,
    )
    graft, plain = made.grafts[0], torch.linalg.eigh

    def flipped(x):
        values, vectors = plain(x)
        return values, vectors * torch.tensor([1.0, -1.0]).double().repeat(len(vectors))[: len(vectors)]

    rows = calibrate._principal(host, graft, [X], kept)
    monkeypatch.setattr(torch.linalg, "eigh", flipped)
    assert torch.equal(calibrate._principal(host, graft, [X], kept), rows)
    assert rows.shape[0] == kept and rows.abs().sum(1).gt(0).sum() == min(kept, rows.shape[1])


def test_re_estimation_is_torchs_own_update_bn():
    import torch.optim.swa_utils as swa

    ours, theirs = lived_in(HOST), lived_in(HOST)
    with torch.no_grad():
        reestimate(ours, batch_norms(ours), X.split(32))
    theirs.train()
    swa.update_bn(X.split(32), theirs)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, msg=lambda m, n=name: f"{n}: {m}")


def test_re_estimation_needs_a_batch_norm():
    host = TorchvisionResNet("resnet18", width=4, norm="group").build(IMAGE, 5, seed=0)
    with pytest.raises(UserError, match="this host has no batch norm"):
        operated(host, "conv1", host.conv1, Replace(calibrate="batch_norm"))


@pytest.mark.parametrize("operation", [Replace, Insert])
@pytest.mark.parametrize("path", ["conv1", "layer2.0.conv1", "layer2.0", "layer3"])
def test_moments_are_the_intact_hosts(path, operation):
    host = lived_in(HOST)
    spec = operation(calibrate="moments")
    slot = surgery.slot_of(host, find_sites(host, IMAGE)[path], spec, IMAGE)
    donor = slot.conv().build()
    made = operated(host, path, donor, spec)
    ours, wanted = outputs(made.network, path), outputs(host, path)
    torch.testing.assert_close(ours.mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.std((0, 2, 3)), wanted.std((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert torch.equal(
        made.network.get_submodule(made.roles["graft"][0]).weight, donor.weight
    )  # the donor is as it was


def test_moments_of_a_stem_are_matched_after_its_norm():
    host = lived_in(HOST)
    spec = Replace(calibrate="moments")
    slot = surgery.slot_of(host, find_sites(host, IMAGE)["conv1"], spec, IMAGE)
    made = operated(host, "conv1", Stem(slot.conv(), "batch").build(), spec)
    assert made.roles == {"graft": ["conv1", "bn1.norm"], "adapter": [], "calibration": ["bn1.affine"]}
    ours, wanted = outputs(made.network, "bn1"), outputs(host, "bn1")
    torch.testing.assert_close(ours.mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert torch.equal(made.undone()(X), host(X))


@pytest.mark.parametrize("path, kind", [("conv1", "conv"), ("layer2.1.conv2", "stem"), ("layer3.0", "block")])
def test_lsuv_gives_every_convolution_of_the_donor_unit_variance(path, kind):
    host = lived_in(HOST)
    spec = Replace(calibrate="lsuv")
    slot = surgery.slot_of(host, find_sites(host, IMAGE)[path], spec, IMAGE)
    donor = {"conv": slot.conv, "stem": lambda: Stem(slot.conv(), "batch"), "block": slot.block}[kind]().build()
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.mul_(7)
    made = operated(host, path, donor, spec)
    convs = [name for name, m in made.network.named_modules() if isinstance(m, nn.Conv2d)
             and any(name == top or name.startswith(top + ".") for top in made.roles["graft"])]  # fmt: skip
    assert len(convs) == {"conv": 1, "stem": 1, "block": 3}[kind]
    for name in convs:
        assert outputs(made.network, name).var().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("host", [pytest.param(lived_in(HOST), marks=pytest.mark.slow), pytest.param(lived_in(TorchvisionResNet("resnet50", width=4)), marks=pytest.mark.slow), lived_in(TorchvisionResNet("resnet18", width=4, norm="group"))],
                         ids=["resnet18", "resnet50", "group norm"])  # fmt: skip
@pytest.mark.parametrize("operation", [Replace(channel_matching="project"), Insert(position="before", channel_matching="project"), Parallel(gate=0.0, channel_matching="project")],
                         ids=lambda spec: spec.name)  # fmt: skip
def test_least_squares_is_no_worse_than_identity_at_any_site(host, operation):
    x = X[:24]
    for site in one_of_each(host, find_sites(host, IMAGE)):
        slot = surgery.slot_of(host, site, operation, IMAGE)
        ins, outs = max(1, slot.layer.in_channels - 1), slot.layer.out_channels + 2
        donor = slot.conv(in_channels=ins, out_channels=outs).build()
        errors = {}
        for start in ("identity", "least_squares"):
            spec = replace(operation, adapter_init=start)
            made = surgery.calibrated(surgery.graft(host, [(site, donor)], spec, IMAGE), x, spec)
            errors[start] = reconstruction_error(made, made.grafts[0], x)
        assert errors["least_squares"] <= errors["identity"] * (1 + 1e-4) + 1e-6, (site.path, errors)


def test_least_squares_is_the_closed_form():
    """A second implementation: torch.linalg.lstsq over all pixels."""
    host = lived_in(HOST)
    donor = nn.Conv2d(3, 7, 3, padding=1)
    made = operated(host, "conv1", donor, Replace(channel_matching="project"))
    with torch.no_grad():
        z, y = (t.transpose(0, 1).flatten(1).T.double() for t in (donor(X), host.conv1(X)))
        wanted = torch.linalg.lstsq(z, y).solution.T
    torch.testing.assert_close(made.network.conv1.after.weight[..., 0, 0].double(), wanted, rtol=1e-3, atol=1e-4)


def test_least_squares_finds_an_exact_answer_where_there_is_one():
    """The donor holds the site's own filters in another order and twice: a 1 x 1 convolution puts them right."""
    host = lived_in(HOST)
    donor = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    own = host.layer1[0].conv1.weight
    with torch.no_grad():
        donor.weight.copy_(torch.cat([own.flip(0), own]))
    made = operated(host, "layer1.0.conv1", donor, Replace(channel_matching="project"))
    assert reconstruction_error(made, made.grafts[0], X) < 1e-9
    with torch.no_grad():
        torch.testing.assert_close(made.network(X), host(X), rtol=1e-3, atol=1e-4)


def test_a_stride_that_the_donor_lacks_is_taken_by_the_adapter():
    host = lived_in(HOST)
    site = find_sites(host, IMAGE)["layer2.0"]
    donor = surgery.slot_of(host, site, Replace(), IMAGE).block(stride=1).build()
    made = operated(host, "layer2.0", donor, Replace(channel_matching="project"))
    assert made.network.layer2[0].after.stride == (2, 2) and made.network(X).shape == (96, 5)


def test_the_host_is_left_as_it_was():
    host = lived_in(HOST).train()
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    for calibrate in ("batch_norm", "moments", "lsuv"):
        made = operated(host, "conv1", nn.Conv2d(3, 4, 3), Replace(channel_matching="project", calibrate=calibrate))
        assert made.network.training and host.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())
    assert not any(module._forward_hooks for module in [*host.modules(), *made.network.modules()])


def training_output(network, path):
    """What the module at `path` gives in training's first step."""
    seen = []
    handle = network.get_submodule(path).register_forward_hook(
        lambda module, args, output: seen.append(output.detach())
    )
    network.train()(X)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    "options", [{"calibrate": "moments"}, {"calibrate": "lsuv"}, {"channel_matching": "project"}], ids=str
)
def test_in_an_untrained_deep_host_a_graft_keeps_the_scale_that_training_sees(options):
    """Its norms have no statistics yet: measured in evaluation mode, activations would grow from block to block."""
    host, spec = CifarResNet("resnet56", width=4).build(IMAGE, 5, seed=0), Replace(**options)
    path = "layer3.8"
    slot = surgery.slot_of(host, find_sites(host, IMAGE)[path], spec, IMAGE)
    donor = Stem(slot.conv(), "batch").build() if options.get("calibrate") == "moments" else slot.conv().build()
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    made = operated(host, path, donor, spec)
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())
    if options.get("calibrate") == "lsuv":
        assert training_output(made.network, path).var().item() == pytest.approx(1, abs=0.2)
    else:
        ratio = training_output(made.network, path).std() / training_output(host, path).std()
        assert 0.5 < ratio < 2


def test_a_folded_bias_and_moments_are_as_good_as_a_kept_bias():
    host, donor = lived_in(HOST), nn.Conv2d(3, 4, 3, padding=1)
    nn.init.constant_(donor.bias, 2.0)
    kept, folded = (
        operated(host, "conv1", donor, Replace(bias=bias, calibrate="moments")) for bias in ("keep", "fold")
    )
    with torch.no_grad():
        torch.testing.assert_close(folded.network(X), kept.network(X), rtol=1e-3, atol=1e-4)


def test_lsuv_looks_past_a_bias():
    donor = nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        donor.bias.copy_(torch.tensor([3.0, -3.0, 3.0, -3.0]))
    made = operated(lived_in(HOST), "conv1", donor, Replace(calibrate="lsuv")).network
    assert (outputs(made, "conv1") - donor.bias[:, None, None]).var().item() == pytest.approx(1, abs=0.1)
    assert 0.1 < made.conv1.weight.norm() / donor.weight.norm() < 10


def test_sites_are_calibrated_in_the_order_in_which_they_act():
    host, spec = lived_in(HOST), Replace(calibrate="lsuv")
    sites = find_sites(host, IMAGE)
    donors = {
        path: surgery.slot_of(host, sites[path], spec, IMAGE).conv().build() for path in ("conv1", "layer1.0.conv1")
    }
    first, second = (
        surgery.calibrated(
            surgery.graft(host, [(sites[path], donors[path]) for path in order], spec, IMAGE), X, spec
        ).network
        for order in (["conv1", "layer1.0.conv1"], ["layer1.0.conv1", "conv1"])
    )
    assert torch.equal(first.layer1[0].conv1.weight, second.layer1[0].conv1.weight)
    assert outputs(second, "layer1.0.conv1").var().item() == pytest.approx(1, abs=0.1)


def test_adapters_are_fitted_to_the_statistics_that_the_donor_will_have():
    torch.manual_seed(0)  # the donor draws from torch's own generator
    host = lived_in(HOST)
    donor = surgery.slot_of(host, find_sites(host, IMAGE)["layer2.0"], Replace(), IMAGE).block().build()
    for module in donor.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.running_mean, 3.0)  # stale
    errors = {
        calibrate: operated(host, "layer2.0", donor, Replace(channel_matching="project", calibrate=calibrate))
        for calibrate in ("none", "batch_norm")
    }
    none, anew = (reconstruction_error(made, made.grafts[0], X) for made in errors.values())
    assert anew < 0.9 * none and anew < 0.6


def test_least_squares_leaves_noise_alone():
    """A donor of 3 filters for 8 channels: directions that only rounding fills must not get huge weights."""
    made = operated(lived_in(HOST), "conv1", nn.Conv2d(3, 8, 1, bias=False), Replace(channel_matching="project"))
    assert made.network.conv1.after.weight.abs().max() < 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reconstruction_error(made, made.grafts[0], X) < 1.05


def test_a_small_rest_counts_as_what_it_is():
    """130 images are two batches of 65, not one of 128 and one of 2 that weighs as much."""
    spec = Replace(calibrate="batch_norm")
    host = lived_in(HOST)
    images = torch.randn(130, *IMAGE)
    made = surgery.graft(host, [(find_sites(host, IMAGE)["conv1"], host.conv1)], spec, IMAGE)
    ours = surgery.calibrated(made, images, spec).network.bn1.running_var
    with torch.no_grad():
        wanted = torch.stack([host.conv1(half).transpose(0, 1).flatten(1).var(1) for half in images.split(65)]).mean(0)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6)
