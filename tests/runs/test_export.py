"""A run's network taken away: rebuilt from its record, written, read again, the same logits."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.conftest import TINY

from layergraft.errors import RunFailed, UserError
from layergraft.runs import export as exporting
from layergraft.runs.export import export, trained_network
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute

FORMATS = ["safetensors", "torch.export", "onnx"]


@pytest.fixture(scope="module")
def key(sweep):
    return next(path.name for path in (sweep / "runs").glob("hybrid.late*seed0*") if path.is_dir())


@pytest.mark.parametrize(
    "overrides",
    [
        ["donor=none"],
        ["host=resnet8", "site=[layer1.0,layer3]", "donor=end_to_end"],
        ["surgery=parallel", "surgery.gate=0", "site=layer2.1"],
        ["surgery=insert", "surgery.channel_matching=project", "donor.out_channels=6", "donor.kernel_size=5", "donor.padding=2", "site=layer3.0.conv1"],
        ["surgery.bias=fold", "donor.bias=true", "site=layer1.0.conv1"],
        ["data=textures", "data.size=16", "data.per_class=60", "host.in_channels=1", "host.skips=false"],
    ],
    ids=lambda overrides: " ".join(overrides)[:40],
)  # fmt: skip
def test_the_network_is_put_together_from_the_record_alone(overrides, config, tmp_path):
    tiny = [o for o in TINY if not o.startswith("donor.") or "donor=none" not in overrides]
    given = config(*tiny, "schedule.epochs=1", "host=resnet18", "strategy=full", *overrides, f"exec.outputs={tmp_path}")
    record = execute(plan_run(given))
    assert record.status == "completed", record.traceback
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    network, _ = trained_network(Path(given.exec.outputs), record.key)
    own = plan_run(given).build().network.eval()
    own.load_state_dict(load_file(tmp_path / "runs" / record.key / "model.safetensors"))
    channels, *size = record.data["image"]
    x_NCHW = torch.randn(3, given.host.in_channels or channels, *size)
    with torch.no_grad():
        assert torch.equal(network(x_NCHW), own(x_NCHW))


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_logits(form, sweep, key, tmp_path):
    path = export(sweep, key, form, tmp_path / f"network{exporting.SUFFIXES[form]}")
    network, record = trained_network(sweep, key)
    x_NCHW = torch.randn(7, *record.data["image"])
    with torch.no_grad():
        wanted = network(x_NCHW)
        if form == "torch.export":
            given = torch.export.load(path).module()(x_NCHW)
        elif form == "onnx":
            import onnxruntime

            given = torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"images": x_NCHW.numpy()})[0])
        else:
            with safe_open(path, "pt") as file:
                assert json.loads(file.metadata()["config"]) == record.config
                assert len(json.loads(file.metadata()["normalization"])["mean"]) == 1
            network.load_state_dict(load_file(path))
            given = network(x_NCHW)
    assert torch.allclose(given, wanted, atol=1e-4)


@pytest.mark.parametrize("form", FORMATS)
def test_what_cannot_be_vouched_for_leaves_what_was_there(form, sweep, key, tmp_path, monkeypatch):
    path = tmp_path / f"a{exporting.SUFFIXES[form]}"
    path.write_bytes(b"mine")

    def wrong(network, record, image, path):
        path.write_bytes(b"")
        return lambda x: network(x) + 0.01

    monkeypatch.setitem(exporting._WRITERS, form, wrong)
    with pytest.raises(RunFailed, match=f"as {form} it gives other logits than the run's network.* was not written"):
        export(sweep, key, form, path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"mine"


def test_a_key_may_be_cut_short_and_what_is_no_run_is_refused(sweep, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export(sweep, key[:-4]).name == f"{key}.safetensors"
    with pytest.raises(UserError, match=r"2 runs in .* begin with 'hybrid.late': hybrid.late.*, hybrid.late"):
        export(sweep, "hybrid.late")
    with pytest.raises(UserError, match="unknown run"):
        export(sweep, "none")
    with pytest.raises(UserError, match="there is no folder"):
        export(sweep, key, to=tmp_path / "a" / "b.safetensors")
    with pytest.raises(UserError, match="is a folder; --to takes the file"):
        export(sweep, key, to=tmp_path)
    with pytest.raises(UserError, match="ends in .pt2"):
        export(sweep, key, "torch.export", tmp_path / "a.pt")


def test_what_was_written_classifies_as_the_record_says(sweep, key, config, tmp_path):
    """Images normalised by the record's mean and deviation give the run's own test accuracy."""
    network, record = trained_network(sweep, key)
    network.load_state_dict(load_file(export(sweep, key, to=tmp_path / "a.safetensors")))
    test = config().data.load(record.axes["seed"]).test
    mean, std = (torch.tensor(record.normalization[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        logits = network((torch.from_numpy(test.x_NCHW) / 255 - mean) / std)
    found = 100 * (logits.argmax(1).numpy() == test.y_N).mean()
    assert found == pytest.approx(record.metrics["test/acc"])
