"""Channels that differ: shape algebra over kernels, strides, channels, widths and norms; what each fit keeps."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import place_at
from layergraft import surgery
from layergraft.config.schema import CHANNEL_MATCHING
from layergraft.errors import UserError
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.layer_architectures import Conv, Stage, Stem, architecture_of, describe, from_json, to_json
from layergraft.hosts.resnet_blocks import NORM_LAYERS
from layergraft.hosts.resnets import Block
from layergraft.hosts.sites import find_sites
from layergraft.surgery import Insert, Parallel, Replace

IMAGE = (3, 16, 16)
channels = st.integers(1, 12)
convs = st.builds(
    Conv, channels, channels, st.sampled_from([1, 2, 3, 4, 7]), st.integers(1, 3), st.integers(0, 3), st.booleans()
)
stems = st.builds(Stem, convs, st.sampled_from(sorted(NORM_LAYERS)))


@st.composite
def blocks(draw):
    kind, ins, stride = draw(st.sampled_from(["basic", "bottleneck"])), draw(channels), draw(st.integers(1, 2))
    outs = draw(channels) * (1 if kind == "basic" else 4)
    width = outs if kind == "basic" else draw(channels)
    skips = ["none", "conv"] + (["identity"] if (ins, stride) == (outs, 1) else []) + (["pad"] if outs >= ins else [])
    return Block(
        kind, ins, width, outs, stride, draw(st.sampled_from(sorted(NORM_LAYERS))), draw(st.sampled_from(skips))
    )


architectures = st.one_of(convs, stems, blocks())
hosts = st.one_of(
    st.builds(
        TorchvisionResNet, st.sampled_from(["resnet18", "resnet50"]), width=st.sampled_from([4, 6]), norm=st.sampled_from(["batch", "group"]),
        skips=st.booleans(), stem=st.sampled_from(["imagenet", "small"]),
    ),
    st.builds(CifarResNet, st.just("resnet8"), width=st.sampled_from([3, 8]), norm=st.sampled_from(["batch", "group"]), skips=st.booleans()),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(architecture=architectures)
def test_a_form_builds_the_layer_that_it_is_read_off(architecture):
    with torch.device("meta"):
        layer = architecture.build()
    assert (
        architecture_of(layer) == architecture
        and from_json(to_json(architecture)) == architecture
        and describe(architecture)
    )
    out = layer(torch.empty(2, architecture.in_channels, 24, 24, device="meta"))
    assert out.shape[1] == architecture.out_channels
    if not isinstance(architecture, (Conv, Stem)):
        assert out.shape[2] == -(-24 // architecture.stride)


def test_a_stage_and_a_grouped_convolution_are_forms_too():
    stage = TorchvisionResNet("resnet34", width=4).build(IMAGE, 5, seed=0).layer2
    assert (
        from_json(to_json(architecture_of(stage)))
        == architecture_of(stage)
        == Stage((architecture_of(stage[0]), *[architecture_of(stage[1])] * 3))
    )
    resnext = TorchvisionResNet("resnext50_32x4d", width=16).build(IMAGE, 5, seed=0)
    assert architecture_of(architecture_of(resnext.layer2[0]).build()) == architecture_of(resnext.layer2[0])
    assert architecture_of(resnext.layer2[0].conv2).groups == 32


@settings(max_examples=100, deadline=None)
@given(spec=hosts, architecture=architectures, data=st.data())
@pytest.mark.slow
def test_whatever_fits_gives_the_hosts_shapes_and_whatever_does_not_says_so(spec, architecture, data):
    with torch.device("meta"):
        host, donor = spec.build(IMAGE, 5, seed=0), architecture.build()
    site = data.draw(st.sampled_from(list(find_sites(host, IMAGE).values())))
    operation = dataclasses.replace(
        data.draw(st.sampled_from([Replace(), Insert(position="before"), Insert(), Parallel()])),
        channel_matching=data.draw(st.sampled_from(CHANNEL_MATCHING)),
        adapter_init="identity",
    )
    try:
        made = surgery.graft(host, [(site, donor)], operation, IMAGE)
    except UserError as error:
        assert str(error).startswith(f"the donor does not fit {site.path}: ") and describe(architecture).split(",")[
            0
        ] in str(error)
        return
    after = find_sites(made.network, IMAGE)
    assert made.network(torch.empty(2, *IMAGE, device="meta")).shape == (2, 5)
    for path, other in find_sites(
        host, IMAGE
    ).items():  # wherever the host still has its own layers, they see what they saw
        if path in after and path not in made.grafts[0].placed.replaced:
            assert (after[path].in_shape, after[path].out_shape) == (other.in_shape, other.out_shape)
    assert sum(len(names) for names in made.parts.values()) == len(list(made.network.parameters()))
    assert not made.roles["adapter"] or operation.channel_matching == "project"


def matched(donor, method, ins=3, outs=4):
    """The donor as it is in the place of a 3 x 3 convolution from `ins` to `outs` channels."""
    host = nn.Sequential(
        nn.Conv2d(ins, outs, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(outs, 2),
    )
    site = find_sites(host, (ins, 8, 8))["0"]
    return surgery.graft(host, [(site, donor)], Replace(channel_matching=method), (ins, 8, 8), head=("4",)).network[0]


def grey_images(number, equal_to=None):
    x = torch.randn(4, 1, 8, 8) if equal_to is None else equal_to[:, :1]
    return x.expand(-1, number, -1, -1)


@pytest.mark.parametrize("fit", ["tile", "sum", "average"])
def test_a_grey_donor_in_a_colour_host_answers_to_grey_images_as_before(fit):
    donor = nn.Conv2d(1, 4, 3, padding=1)
    x = grey_images(3)
    torch.testing.assert_close(matched(donor, fit if fit != "average" else "sum")(x), donor(x[:, :1]))
    layer = matched(donor, fit)
    assert torch.equal(layer.weight[:, 0], layer.weight[:, 2])


@pytest.mark.parametrize("ins", [3, 4])
def test_a_colour_donor_summed_into_a_grey_host_answers_to_grey_images_as_before(ins):
    donor = nn.Conv2d(ins, 4, 3, padding=1)
    x = grey_images(1)
    torch.testing.assert_close(matched(donor, "sum", ins=1)(x), donor(x.expand(-1, ins, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "ins, outs, fit", [(4, 3, "sum"), (3, 4, "sum"), (3, 6, "tile"), (1, 4, "tile"), (3, 4, "tile"), (3, 5, "tile")]
)
def test_equal_channels_give_an_equal_response(ins, outs, fit):
    donor = nn.Conv2d(ins, 4, 3, padding=1)
    x = grey_images(outs)
    torch.testing.assert_close(
        matched(donor, fit, ins=outs)(x), donor(x[:, :1].expand(-1, ins, -1, -1)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("ins, new", [(1, 3), (3, 1), (4, 3)])
def test_average_keeps_the_response_to_noise(ins, new):
    donor = nn.Conv2d(ins, 4, 3, padding=1, bias=False)
    layer = matched(donor, "average", ins=new)
    torch.testing.assert_close(layer.weight.flatten(1).norm(dim=1), donor.weight.flatten(1).norm(dim=1))


def test_average_does_not_blow_up_what_cancels_out():
    donor = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    with torch.no_grad():
        donor.weight[:, 2] = -donor.weight[:, 0] - donor.weight[:, 1]  # a filter for colour alone
    assert matched(donor, "average", ins=1).weight.abs().max() < 1e-5


def test_a_resized_donor_is_in_the_hosts_mode():
    host = TorchvisionResNet("resnet18", width=8).build(IMAGE, 5, seed=0).eval()
    block = Block("basic", 4, 4, 4, 1).build()
    made = surgery.graft(
        host, [(find_sites(host, IMAGE)["layer1.0"], block)], Replace(channel_matching="tile"), IMAGE
    ).network
    assert not any(module.training for module in made.modules())


@pytest.mark.parametrize("module", [nn.Sequential(), nn.Linear(3, 4), nn.Sequential(nn.ReLU()), nn.Identity()])
def test_what_is_no_layer_is_refused(module):
    with pytest.raises(UserError, match="must be a convolution, stem .*, block or stage of blocks"):
        matched(module, "strict")


@pytest.mark.parametrize(
    "spec, path, wanted",
    [
        (TorchvisionResNet("resnet18", width=8, norm="group"), "layer1.0.conv1", ("basic", "group", "identity")),
        (TorchvisionResNet("resnet18", width=8, norm="group", skips=False), "layer2", ("basic", "group", "none")),
        (TorchvisionResNet("resnet50", width=8), "layer2", ("bottleneck", "batch", "conv")),
        (CifarResNet("resnet20"), "layer2", ("basic", "batch", "pad")),
        (CifarResNet("resnet20"), "layer2.0.conv1", ("basic", "batch", "pad")),
    ],
)
def test_a_block_for_a_place_is_like_the_hosts(spec, path, wanted):
    block = place_at(spec, path, IMAGE).block()
    assert (block.type, block.norm, block.shortcut) == wanted
    assert architecture_of(block.build()) == block


def test_a_convolution_for_a_grouped_site_is_grouped():
    slot = place_at(TorchvisionResNet("resnext50_32x4d", width=16), "layer1.0.conv2", IMAGE)
    assert slot.conv() == slot.layer and slot.conv().groups == 32 and slot.conv(out_channels=5).groups == 1


def test_slice_and_tile_take_channels_in_turn_and_keep_the_scale():
    donor = nn.Conv2d(2, 3, 3, padding=1)
    tiled = matched(donor, "tile", ins=3, outs=7)
    for out in range(7):
        for channel in range(3):
            copies = 2 if channel % 2 == 0 else 1  # of the donor's channel among the three
            torch.testing.assert_close(tiled.weight[out, channel], donor.weight[out % 3, channel % 2] / copies)
        assert tiled.bias[out] == donor.bias[out % 3]
    large = nn.Conv2d(6, 8, 3, padding=1)
    sliced = matched(large, "slice", ins=3, outs=4)
    torch.testing.assert_close(sliced.weight, large.weight[:4, :3])


@pytest.mark.parametrize("kernel_size", [2, 4])
@pytest.mark.parametrize("fit", ["strict", "project"])
def test_a_kernel_of_even_size_is_padded_by_a_pixel_more_on_one_side(kernel_size, fit):
    host = TorchvisionResNet("resnet18", width=4).build(IMAGE, 5, seed=0)
    donor = nn.Conv2d(4, 8, kernel_size, bias=False)
    site = find_sites(host, IMAGE)["layer2.0.conv1"]
    made = surgery.graft(host, [(site, donor)], Replace(channel_matching=fit, adapter_init="identity"), IMAGE)
    x = torch.randn(2, 4, 8, 8)
    low, high = (kernel_size - 1) // 2, kernel_size // 2
    wanted = nn.functional.conv2d(nn.functional.pad(x, (low, high, low, high)), donor.weight, stride=2)
    torch.testing.assert_close(made.network.layer2[0].conv1(x), wanted)
    assert made.roles["graft"] == ["layer2.0.conv1.donor"]


def test_a_tiled_block_computes_the_same_function_many_times():
    """Net2Net's widening: channels repeated on a repeated input give the donor's output, repeated."""
    block = Block("basic", 4, 4, 4, 1).build().eval()
    host = TorchvisionResNet("resnet18", width=8).build(IMAGE, 5, seed=0)
    wide = surgery.graft(
        host, [(find_sites(host, IMAGE)["layer1.0"], block)], Replace(channel_matching="tile"), IMAGE
    ).network.layer1[0]
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(wide.eval()(x.repeat(1, 2, 1, 1)), block(x).repeat(1, 2, 1, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "donor, advice",
    [
        (nn.Conv2d(1, 4, 3), "surgery.channel_matching=project or tile or sum or average would fit it"),
        (nn.Conv2d(4, 4, 3), "surgery.channel_matching=project or slice or sum or average would fit it"),
        (nn.Conv2d(1, 8, 3), "surgery.channel_matching=project would fit it"),
        (nn.Conv2d(6, 8, 3), "surgery.channel_matching=project or slice would fit it"),
        (Block("basic", 3, 4, 4, 2, shortcut="conv").build(), "no surgery.channel_matching would fit it"),
    ],
)
def test_a_donor_that_does_not_fit_is_refused_with_both_shapes_and_what_would_work(donor, advice):
    with pytest.raises(UserError) as refused:
        matched(donor, "strict")
    text = str(refused.value)
    assert (
        describe(architecture_of(donor)) in text
        and "the site takes a conv, 3 -> 4 channels, stride 1, kernel 3 x 3, padding 1" in text
    )
    assert text.endswith(advice) and "\n" not in text
