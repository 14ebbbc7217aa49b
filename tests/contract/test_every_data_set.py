"""Every data set of conf/data, read by its real loader from files of its own format: splits apart, sound, and a run."""

import numpy as np
import pytest
from tests.data.written import write

from layergraft.cli.help import groups
from layergraft.config.compose import conf_dir
from layergraft.errors import UserError
from layergraft.runs.plan import plan_run

NAMES = sorted({*list(groups([conf_dir()])["data"])} - {"none"})
# Smaller batches where there are few images.
FEW = ["optim.batch_size=25", "exec.device=cpu"]


@pytest.fixture
def loaded(config, tmp_path, monkeypatch):
    written = {}

    def load(name, *overrides):
        extra = written[name] if name in written else write(name, tmp_path, monkeypatch)
        written[name] = extra
        paths = [f"exec.data={tmp_path}", f"exec.outputs={tmp_path / 'outputs'}"]
        return config(f"data={name}", *paths, *extra, *FEW, *overrides)

    return load


@pytest.mark.parametrize("name", NAMES)
def test_no_image_is_in_two_splits_and_all_are_sound(name, loaded):
    run = loaded(name)
    data = run.data.load(0)
    rows = [set(split.rows.tolist()) for split in data.splits.values()]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]
    pixels = [{x.tobytes() for x in split.x_NCHW} for split in data.splits.values()]
    assert not pixels[0] & pixels[2] and not pixels[0] & pixels[1] and not pixels[1] & pixels[2]
    for split in data.splits.values():
        assert split.x_NCHW.dtype == np.uint8 and split.x_NCHW.shape[1:] == data.shape and len(split)
        assert 0 <= split.y_N.min() and split.y_N.max() < data.num_classes == len(data.class_names)
    assert plan_run(run).key


@pytest.mark.parametrize("name", NAMES)
def test_the_same_files_give_the_same_data_wherever_they_lie(name, loaded):
    run = loaded(name)
    again = loaded(name)
    assert plan_run(run).key == plan_run(again).key
    moved = dict(vars(run.data))
    for place in run.data.location_fields:
        moved[place] = "elsewhere"
    assert type(run.data)(**moved).identity() == run.data.identity()


WANTED = {
    "cifar10": "cifar-10-batches-py/ .from cifar-10-python.tar.gz. there",
    "cifar10_test": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "svhn": "put train_32x32.mat and test_32x32.mat there",
    "stl10": "stl10_binary.tar.gz",
    "food101": "food-101.tar.gz",
    "flowers102": "102flowers.tgz",
    "medmnist": "pathmnist.npz is not in .* put it there, from https://",
    "npz": "there is no file .*; set data.path=FILE.npz",
    "folder": "there is no folder .*; set data.path=FOLDER",
    "dicom": "there is no folder .*; set data.path=FOLDER",
}


def no_network(*args, **kwargs):
    raise OSError("no network here")


@pytest.mark.parametrize(
    "name",
    sorted(set(NAMES) - {"digits", "digits_a", "digits_b_blurred", "digits_0_to_4", "digits_5_to_9", "textures"}),
)
def test_without_its_files_and_a_network_the_error_says_what_to_put_where(name, config, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    needed = {"npz": ["data.path=nowhere.npz"], "folder": ["data.path=nowhere"], "dicom": ["data.path=nowhere"]}
    run = config(f"data={name}", f"exec.data={tmp_path}", *needed.get(name, []))
    with pytest.raises(UserError, match=WANTED[name]):
        run.data.load(0)
