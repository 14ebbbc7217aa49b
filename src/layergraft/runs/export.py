"""A run's trained network as a file that others can load, checked to give the same logits."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from layergraft import surgery
from layergraft.config.plugins import installed
from layergraft.config.registry import from_canonical
from layergraft.errors import RunFailed, UserError, listing, require, unknown
from layergraft.hosts.layer_architectures import from_json
from layergraft.hosts.sites import find_sites
from layergraft.store.records import RECORD, RunRecord, read_record, run_folder

WEIGHTS = "model.safetensors"
SUFFIXES = {"safetensors": ".safetensors", "torch.export": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-4  # of the largest logit; other kernels add up in another order
CHECKED = 5  # images, a number that no format was traced with


def export(outputs: Path, key: str, form: str = "safetensors", to: Path | None = None) -> Path:
    """Write the network of a completed run; the file's path, `KEY.SUFFIX` in the current folder by default.
    The file takes images (N, C, H, W) float32, N free, normalised by the mean and deviation that the record names, and
    gives logits (N, classes). Raises UserError for an unknown run or format, RunFailed where the logits differ."""
    if form not in SUFFIXES:
        raise unknown("format", form, SUFFIXES)
    if form == "onnx":
        _require_onnx()
    network, record = trained_network(outputs, key)
    path = to or Path(f"{record.key}{SUFFIXES[form]}")
    require(form != "torch.export" or path.suffix == ".pt2", f"a file of torch.export ends in .pt2; given: {path}")
    require(path.parent.is_dir(), f"there is no folder {path.parent}")
    require(not path.is_dir(), f"{path} is a folder; --to takes the file to write")
    image = _image_of(record)
    x_NCHW = torch.randn(CHECKED, *image, generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as there, torch.no_grad():
        written = Path(there) / path.name  # what is at `path` stays until this has been checked
        wanted, given = network(x_NCHW), _WRITERS[form](network, record, image, written)(x_NCHW)
        worst = float((given - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        if not worst <= TOLERANCE:
            by = f"by {worst:.1g} of the largest; {path} was not written"
            raise RunFailed(f"as {form} it gives other logits than the run's network, {by}")
        written.chmod(0o644)  # safetensors makes 0600, which shuts colleagues on a shared disk out
        written.replace(path)
    return path


def trained_network(outputs: Path, key: str) -> tuple[nn.Module, RunRecord]:
    """The network of a completed run with its trained weights, in evaluation mode, and the run's record.
    `key` is the run's, or how the key of no other begins. It is put together from the record alone: neither data nor
    donors need be there. Raises UserError for another key."""
    installed()  # the host may be of a plug-in's kind
    runs = outputs / "runs"
    every = sorted(path.parent.name for path in runs.glob(f"*/{RECORD}"))
    near = [name for name in every if name.startswith(key)]
    if not near:
        raise unknown(f"run in {runs}:", key, every)
    name = key if key in near else near[0]
    require(name == key or len(near) == 1, f"{len(near)} runs in {runs} begin with '{key}': {listing(near)}")
    folder = run_folder(outputs, name)
    record = read_record(folder)
    assert record is not None
    require(record.status == "completed", f"the run {key} is {record.status}; only a completed one has its network")
    require((folder / WEIGHTS).is_file(), f"the weights of {key} are gone: there is no {folder / WEIGHTS}")
    network = _meta_host(record)
    network.load_state_dict(load_file(folder / WEIGHTS))
    return network.eval(), record


def _image_of(record: RunRecord) -> tuple[int, int, int]:
    channels, height, width = record.data["image"]
    return (record.config["host"]["in_channels"] or channels, height, width)


def _meta_host(record: RunRecord) -> nn.Module:
    """The network of the run's shape, with weights that say nothing."""
    config, image = record.config, _image_of(record)
    shape = {name: value for name, value in config["host"].items() if name != "pretrain"}
    host = from_canonical("host", record.kinds["host"], shape)
    network: nn.Module = host.build(image, len(record.data["classes"]), 0)
    there = find_sites(network, image)
    layers = [from_json(donor["architecture"]).build() for donor in record.donors]
    donors = [(there[graft.site], layer) for graft, layer in zip(record.grafts, layers, strict=True)]
    operation = from_canonical("surgery", record.kinds["surgery"], config["surgery"])
    return surgery.graft(network, donors, operation, image, host.roles["head"]).network


Network = Callable[[Tensor], Tensor]


def _safetensors(network: nn.Module, record: RunRecord, image: tuple[int, int, int], path: Path) -> Network:
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    known = ("key", "kinds", "config", "grafts", "data", "normalization")
    plain = dataclasses.asdict(record)
    save_file(tensors, path, {name: json.dumps(plain[name]) for name in known})
    read = _meta_host(record)
    read.load_state_dict(load_file(path))
    return read.eval()


def _torch_export(network: nn.Module, record: RunRecord, image: tuple[int, int, int], path: Path) -> Network:
    program = torch.export.export(network, (torch.zeros(2, *image),), dynamic_shapes=({0: torch.export.Dim("images")},))
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _onnx(network: nn.Module, record: RunRecord, image: tuple[int, int, int], path: Path) -> Network:
    import onnxruntime

    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        torch.onnx.export(
            network, (torch.zeros(2, *image),), path, input_names=["images"], output_names=["logits"], dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("images")},), external_data=False, verbose=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def _require_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("--format onnx needs onnxscript and onnxruntime; pip install 'layergraft[export]'") from None


_WRITERS = {"safetensors": _safetensors, "torch.export": _torch_export, "onnx": _onnx}
