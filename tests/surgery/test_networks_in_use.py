"""A grafted network is a network like any other: it compiles, exports, copies, saves, and runs in other formats."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from layergraft import surgery
from layergraft.hosts.layer_architectures import Stem
from layergraft.hosts.sites import find_sites
from layergraft.surgery import Insert, Parallel, Replace
from surgery.test_operations import HOST, lived_in

IMAGE = (3, 16, 16)
CASES = {
    "replaced": (Replace(bias="fold"), "conv", "conv1"),
    "stem with moments": (Replace(calibrate="moments"), "stem", "conv1"),
    "projected block": (Replace(channel_matching="project", adapter_init="identity"), "block", "layer2.0"),
    "gated insert": (Insert(position="before", gate=0.3), "conv", "layer3.1"),
    "gated branch": (Parallel(gate=0.3, channel_matching="project", adapter_init="random"), "stem", "layer1.0.conv2"),
}


@pytest.fixture(params=CASES)
def network(request):
    spec, kind, path = CASES[request.param]
    host = lived_in(HOST, IMAGE)
    site = find_sites(host, IMAGE)[path]
    slot = surgery.slot_of(host, site, spec, IMAGE)
    donor = {"conv": lambda: slot.conv(bias=True), "stem": lambda: Stem(slot.conv(), "batch"), "block": slot.block}[
        kind
    ]().build()
    made = surgery.graft(host, [(site, donor)], spec, IMAGE)
    return surgery.calibrated(made, torch.randn(16, *IMAGE), spec).network


X = torch.randn(4, *IMAGE, generator=torch.Generator().manual_seed(0))


def test_compiles_without_a_break(network):
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), network(X))
    loss, wanted = compiled(X).square().mean(), copy.deepcopy(network)
    loss.backward()
    wanted(X).square().mean().backward()
    for (name, ours), theirs in zip(network.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_exports_and_comes_back(network, tmp_path):
    with torch.no_grad():
        program = torch.export.export(network, (X,))
        torch.export.save(program, tmp_path / "net.pt2")
        torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(X), network(X))


def test_copies_and_saves(network, tmp_path):
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(network)(X), network(X))
        other = copy.deepcopy(network)
        for tensor in other.state_dict().values():
            tensor.add_(1)
        save_file(network.state_dict(), tmp_path / "net.safetensors")
        other.load_state_dict(load_file(tmp_path / "net.safetensors"))
        assert torch.equal(other(X), network(X))


def test_channels_last(network):
    with torch.no_grad():
        wanted = network(X)
        made = copy.deepcopy(network).to(memory_format=torch.channels_last)(X.to(memory_format=torch.channels_last))
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)


def test_mixed_precision(network):
    network.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(X)
    logits.float().square().mean().backward()
    assert logits.dtype == torch.bfloat16 and all(p.grad.isfinite().all() for p in network.parameters())
