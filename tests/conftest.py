"""What the tests share: composing configs, small data, and one small sweep that several tests look at."""

import fcntl
import functools
import os
import shutil
import socket
import sys
from pathlib import Path

from layergraft.data import data_set

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the tests' networks are too small to share out
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA: deterministic algorithms ask for it

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from pytorch_lightning.trainer.connectors import callback_connector

from layergraft.cli.commands import SINGLE, main
from layergraft.config.compose import Composer, conf_dir, normalize_overrides
from layergraft.data.image_data import ImageData, Split
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.hosts.sites import find_sites
from layergraft.surgery import Replace, slot_of
from layergraft.training.backend import Backend

torch.set_num_threads(1)
# Each Trainer looks through the metadata of all that is installed; one look is enough.
callback_connector._load_external_callbacks = functools.cache(callback_connector._load_external_callbacks)
# What tests start from where they say nothing else: a host with initial weights, which need not be trained first.
PLAIN = ["data=digits_0_to_4", "host=resnet18", "site=early", "strategy=hybrid"]
# The smallest run that is still a run: two epochs of a very narrow host.
TINY = ["host.width=4", "schedule.epochs=2", "donor.schedule.epochs=1", "optim.batch_size=25", "exec.device=cpu"]
# Every host, as narrow as it goes without losing its shape.
HOSTS = [
    TorchvisionResNet("resnet18", width=4),
    TorchvisionResNet("resnet34", width=4),
    TorchvisionResNet("resnet50", width=4),
    TorchvisionResNet("resnet101", width=4),
    TorchvisionResNet("resnet152", width=4),
    TorchvisionResNet("wide_resnet50_2", width=4),
    TorchvisionResNet("resnext50_32x4d", width=16),
    *(CifarResNet(name, width=4) for name in ("resnet8", "resnet20", "resnet32", "resnet56", "resnet110")),
]
CPU = Backend("cpu", "float32")
GREY = (1, 8, 8)  # the digits' shape
LAYERGRAFT = Path(sys.executable).with_name("layergraft")  # the installed command


@pytest.hookimpl(optionalhook=True)  # of a plugin that not every machine has
def pytest_xdist_auto_num_workers(config):
    """One more than there are cores: a quarter of the time, tests wait for processes that they started."""
    return len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)) + 1


def pytest_addoption(parser):
    parser.addoption("--device", choices=("cpu", "cuda"), help="of the tests marked cuda; cuda where there is a GPU")


@pytest.fixture(scope="session")
def device(request):
    """Where the tests marked `cuda` train: they are rehearsed on the CPU where there is no GPU."""
    asked = request.config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")
    assert asked == "cpu" or torch.cuda.is_available(), "--device=cuda, and torch sees no CUDA device"
    return asked


def place_at(spec, path, image=GREY, surgery=None):
    """What a donor finds at `path` of a host."""
    host = spec.build(image, 5, seed=0)
    return slot_of(host, find_sites(host, image)[path], surgery or Replace(), image)


@pytest.fixture(scope="session")
def composer():
    """As a sweep composes its runs: each choice of groups by Hydra once, values on a copy (tests/test_conf.py compares)."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        master = compose("config", return_hydra_config=True)
        return Composer(GlobalHydra.instance().config_loader(), master)


@pytest.fixture
def config(composer):
    """Function: overrides -> the Config of a run, as `layergraft train` composes it after PLAIN."""
    return lambda *overrides: composer(normalize_overrides([*PLAIN, *overrides]))


@pytest.fixture
def on_device(config, device, tmp_path):
    """Function: overrides -> the config of a small run on the device, with a store of its own."""
    small = ["host=resnet8", "host.width=8", "donor=random", "data.shift=0", "schedule.epochs=4", "optim.batch_size=50",
             "optim.weight_decay=0.01", "exec.threads=1", "exec.similarity.resamples=0"]  # fmt: skip
    return lambda *overrides: config(*small, f"exec={device}", f"exec.outputs={tmp_path / 'outputs'}", *overrides)


@pytest.fixture
def images():
    """Function: (channels, size, classes) -> random images of 40 train, 20 val, 20 test."""

    def make(channels=3, size=16, num_classes=4, seed=0):
        rng = np.random.default_rng(seed)

        def split(n):
            return Split(rng.integers(0, 256, (n, channels, size, size), np.uint8), rng.integers(0, num_classes, n))

        return ImageData(split(40), split(20), split(20), num_classes, fingerprint="random")

    return make


@pytest.fixture
def command(capsys):
    """Function: arguments of `layergraft` -> (exit code, standard output, standard error). Before the keys of a run stands PLAIN,
    but for an experiment, which says what its runs are, and with `plain=False`."""

    def run(name="", *arguments, plain=True):
        code = 0
        takes_keys = name in (*SINGLE, "advise") and not any("experiment=" in argument for argument in arguments)
        options = [argument for argument in arguments[:1] if argument == "-m"]
        if plain and takes_keys and not any(argument.startswith("--") for argument in arguments):
            given = {argument.partition("=")[0] for argument in arguments}
            base = [choice for choice in PLAIN if choice.partition("=")[0] not in given]
            arguments = [*options, *base, *arguments[len(options) :]]
        try:
            main([name, *arguments] if name else [])
        except SystemExit as error:
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


SWEEP = ["-m", "data=digits_0_to_4", "strategy=freeze,hybrid", "site=early,late", "seed=0,1", "host=resnet18", *TINY[:3], "optim.batch_size=25",
         'hydra.sweeper.controls=[["donor=none","strategy=full"],["donor=random","strategy=freeze"]]', "exec.sweep=small"]  # fmt: skip


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    """The outputs folder of a sweep of 2 strategies x 2 sites x 2 seeds with both controls: 14 different runs.

    Of the processes that share the tests (pytest-xdist) the first makes it; each has a copy of its own.
    """
    own = tmp_path_factory.mktemp("sweep") / "outputs"
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sweep_of_all"
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            main(["train", *SWEEP, f"exec.outputs={own}"])
            shutil.copytree(own, made)
            return own
    shutil.copytree(made, own)
    return own


def write_public_files(folder, width, **cifar10):
    """Write what the experiments look for in `exec.data` and no test can download: the names and shapes are right, the images are
    noise, as many of CIFAR-10 as `cifar10` says, the weights initial."""
    rng = np.random.default_rng(0)

    def images(name, shape, classes, **sizes):
        arrays = {f"{part}_images": rng.integers(0, 256, (size, *shape), np.uint8) for part, size in sizes.items()}
        labels = {f"{part}_labels": (np.arange(size) % classes)[:, None] for part, size in sizes.items()}
        np.savez(folder / f"{name}.npz", **arrays, **labels)

    images("cifar10", (32, 32, 3), 10, **cifar10)
    images("pneumoniamnist", (28, 28), 2, train=120, val=40, test=40)
    for name in ("resnet20", "resnet32", "resnet56"):
        network = CifarResNet(name=name, width=width).build((3, 32, 32), 10, seed=0)
        torch.save({"state_dict": network.state_dict()}, folder / f"{name}.th")


# The smallest run there is, which looks at nothing: the hostile files' tests make hundreds.
SMALLEST = ["host=resnet8", "host.width=2", "schedule.epochs=2", "optim.batch_size=10", "exec.device=cpu", "exec.threads=1",
        "exec.similarity.resamples=0", "exec.probe.epochs=[]", "donor=none", "strategy=full"]  # fmt: skip


@pytest.fixture
def no_network(monkeypatch):
    """The network is shut; the addresses that were asked for."""
    reached, connect = [], socket.socket.connect

    def refuse(*address, **_options):
        reached.append(address)
        raise OSError(101, "the network is not to be reached")

    own = lambda to, address: (connect if to.family == socket.AF_UNIX else refuse)(to, address)  # noqa: E731  to workers
    monkeypatch.setattr(socket.socket, "connect", own)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return reached


@pytest.fixture
def asked(tmp_path, monkeypatch, command, no_network):
    """Function: overrides -> exit code and error of `layergraft COMMAND`, which is one line, names `file`, asked for no
    network and wrote nothing beside `outputs`."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, file=None, what="plan"):
        before = there(tmp_path)
        caches = (data_set._whole, data_set._rows, data_set._half, data_set._pixels, data_set._pool, data_set._loaded)
        for cached in caches:
            cached.cache_clear()  # a process takes it that its files stay as they are
        code, out, err = command(what, *SMALLEST, *map(str, overrides))
        assert no_network == [] and there(tmp_path) == before and "Traceback" not in out + err
        if code:
            *before_it, line = err.splitlines()
            assert code in (1, 2) and line.startswith("error: ") and line.isprintable()
            assert code == 1 or not before_it or "-m" in overrides
            assert file is None or str(file) in err, err
        return code, err

    return run


def there(folder):
    return {str(path) for path in folder.rglob("*") if "outputs" not in path.relative_to(folder).parts}
