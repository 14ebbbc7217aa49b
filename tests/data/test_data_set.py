"""From a whole set to splits, classes, halves, few-shot, corruptions: explicit, by seed, with clear errors."""

import numpy as np
import pytest
from PIL import Image
from tests.data.written import medmnist_arrays, pictures

from layergraft.config.data_schema import CorruptionSpec
from layergraft.config.registry import validate
from layergraft.data import Digits, Folder, Npz, Textures, TorchvisionArrays
from layergraft.data.corruptions import shuffled_blocks
from layergraft.data.data_set import FullData, chosen_classes, require_sound, split_rows
from layergraft.data.duplicates import near_duplicates
from layergraft.data.image_data import Split
from layergraft.errors import UserError
from layergraft.metrics.tasks import Task

SMALL = {"per_class": 24, "size": 16}


def whole(labels, part=None, groups=None, x=None):
    labels = np.asarray(labels)
    x = np.zeros((len(labels), 1, 4, 4), np.uint8) if x is None else x
    return FullData(x, labels, tuple(map(str, range(labels.max() + 1))), part, group_N=groups)


def test_halves_share_no_class_and_are_those_of_their_seed():
    halves = {
        (half, seed): Textures(half=half, halves_seed=seed, **SMALL).load(0) for half in "AB" for seed in range(4)
    }
    for seed in range(4):
        names = [set(halves[half, seed].class_names) for half in "AB"]
        assert not names[0] & names[1] and len(names[0] | names[1]) == 8
    assert len({halves["A", seed].class_names for seed in range(4)}) > 1
    again = Textures(half="A", halves_seed=2, **SMALL).load(99)
    assert again.class_names == halves["A", 2].class_names  # whatever the run's seed


def test_semantic_halves_are_animals_and_vehicles():
    kinds = "airplane automobile bird cat deer dog frog horse ship truck".split()
    set_of = FullData(np.zeros((10, 3, 2, 2), np.uint8), np.arange(10), tuple(kinds))
    halves = [
        [kinds[label] for label in chosen_classes(set_of, TorchvisionArrays("cifar10", half=half, halves="semantic"))]
        for half in "AB"
    ]
    assert halves == ["bird cat deer dog frog horse".split(), "airplane automobile ship truck".split()]
    with pytest.raises(UserError, match="mnist has no halves with a meaning; data.halves=random"):
        chosen_classes(set_of, TorchvisionArrays("mnist", half="A", halves="semantic"))


def test_few_shot_by_class_and_in_all():
    by_class = Digits(train_per_class=7).load(0).train
    assert np.bincount(by_class.y_N).tolist() == [7] * 10
    assert np.array_equal(by_class.rows, Digits(train_size=70).load(0).train.rows)
    with pytest.raises(UserError, match="data.train_per_class is 500, which takes 500 images of class 0"):
        Digits(train_per_class=500).load(0)


def test_splits_are_stratified_and_drawn_by_their_seed_alone():
    labels = np.repeat([0, 1, 2], [100, 200, 300])
    first, again, other = (split_rows(whole(labels), "x", 0.25, 0.5, seed) for seed in (0, 0, 1))
    assert [len(rows) for rows in first] == [225, 75, 300]
    assert sorted(np.concatenate(first).tolist()) == list(range(600))
    for rows in first:
        assert np.allclose(np.bincount(labels[rows]) / len(rows), [1 / 6, 2 / 6, 3 / 6], atol=0.01)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[2], other[2])


def test_a_sets_own_splits_are_kept_and_a_missing_val_is_drawn_from_train():
    labels, part = np.tile([0, 1], 50), np.repeat([0, 2], [60, 40])
    train, val, test = split_rows(whole(labels, part), "x", 0.1, 0.2, 0)
    assert test.tolist() == list(range(60, 100)) and len(val) == 6 and not set(train) & set(val)
    with pytest.raises(UserError, match="x has no test split; it has train, val"):
        split_rows(whole(labels, np.repeat([0, 1], [60, 40])), "x", 0.1, 0.2, 0)


def test_a_patient_is_in_one_split():
    patients = np.repeat(np.arange(60), 3).astype(str)
    rows = split_rows(whole(np.tile([0, 1], 90), groups=patients), "x", 0.2, 0.2, 0)
    found = [set(patients[part]) for part in rows]
    assert all(found) and not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]


@pytest.mark.parametrize(
    "set_of, message",
    [
        (whole([0, 0, 2]), r"no image of class 1 \(1\); classes are numbered from 0 without a gap"),
        (
            FullData(np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 7]), ("a", "b")),
            "1 labels are out of range, .* image 1: 7",
        ),
        (FullData(np.zeros((2, 1, 2, 2), np.uint8), np.array([0, -1]), ("a", "b")), "image 1: -1"),
        (whole([0, 1], x=np.zeros((2, 4, 2, 2), np.uint8)), "1 or 3 channels; their shape is 4 x 2 x 2"),
        (whole([0, 1], x=np.zeros((2, 1, 2, 2))), "images must be uint8, 0 to 255; they are float64"),
        (whole([0, 1], x=np.zeros((3, 1, 2, 2), np.uint8)), "3 images and 2 labels"),
        (
            FullData(np.zeros((1, 1, 2, 2), np.uint8), np.array([[0, 2]]), ("a", "b"), task=Task.multi_label),
            "not all 0 or 1",
        ),
    ],
)
def test_unsound_sets_are_refused(set_of, message):
    with pytest.raises(UserError, match=message):
        require_sound(set_of, "x")


@pytest.mark.parametrize("name", ["noise", "blur", "contrast"])
def test_severities_are_ordered_and_the_same_for_every_seed(name):
    def changed(severity, seed=0):
        return Textures(corrupt=CorruptionSpec(**{name: severity}), **SMALL).load(seed)

    clean = changed(0)
    far = []
    for severity in range(1, 6):
        data = changed(severity)
        far.append([
            np.abs(split.x_NCHW.astype(float) - clean.splits[part].x_NCHW).mean() for part, split in data.splits.items()
        ])  # fmt: skip
    assert (np.diff(np.array(far), axis=0) > 0).all() and min(far[0]) > 0.5
    assert np.array_equal(changed(3).test.x_NCHW, changed(3, seed=5).test.x_NCHW)


def test_noise_has_the_deviation_of_its_severity():
    x = np.full((50, 1, 32, 32), 128, np.uint8)
    from layergraft.data.corruptions import corrupted

    noisy = corrupted(x, CorruptionSpec(noise=3), "x").astype(float) / 255
    assert noisy.std() == pytest.approx(0.08, rel=0.02)
    assert corrupted(x, CorruptionSpec(), "x") is x


def test_chosen_splits_are_corrupted_and_no_others():
    noisy = CorruptionSpec(noise=3, splits=["test"])
    clean, shifted, every = (
        Textures(corrupt=spec, **SMALL).load(0) for spec in (CorruptionSpec(), noisy, CorruptionSpec(noise=3))
    )
    for part in ("train", "val"):
        assert np.array_equal(shifted.splits[part].x_NCHW, clean.splits[part].x_NCHW)
    assert np.array_equal(shifted.test.x_NCHW, every.test.x_NCHW)
    assert not np.array_equal(shifted.test.x_NCHW, clean.test.x_NCHW)
    assert np.array_equal(shifted.original("test").x_NCHW, clean.test.x_NCHW)
    assert np.array_equal(shifted.with_channels(1).original("test").x_NCHW, clean.with_channels(1).test.x_NCHW)
    for splits, message in (
        (["tset"], r"unknown split in data.corrupt.splits: 'tset'; did you mean 'test'\?"),
        ([], "data.corrupt.splits is empty"),
    ):
        with pytest.raises(UserError, match=message):
            validate(CorruptionSpec(splits=splits), "data.corrupt")


def test_blocks_are_shuffled_and_whole():
    x = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 1, 4, 4)
    out = shuffled_blocks(x, 2, np.random.default_rng(0))

    def blocks(images):
        return [sorted(images[i, :, r : r + 2, c : c + 2].tobytes() for r in (0, 2) for c in (0, 2)) for i in (0, 1)]

    assert blocks(out) == blocks(x) and not np.array_equal(out, x)
    with pytest.raises(UserError, match="data.corrupt.blocks is 3, which does not divide textures's images of 16 x 16"):
        Textures(corrupt=CorruptionSpec(blocks=3), **SMALL).load(0)


def test_channels_in_another_order():
    plain, turned = (Textures(corrupt=CorruptionSpec(channels=order), **SMALL).load(0) for order in ([], [2, 0, 1]))
    assert np.array_equal(turned.train.x_NCHW, plain.train.x_NCHW[:, [2, 0, 1]])
    with pytest.raises(UserError, match=r"\[1, 0\]; textures's images have 3 channels"):
        Textures(corrupt=CorruptionSpec(channels=[1, 0]), **SMALL).load(0)


def test_flipped_labels_are_the_share_asked_for_all_wrong_and_in_training_alone():
    clean, wrong, other = (
        Digits(corrupt=CorruptionSpec(labels=share)).load(seed) for share, seed in ((0.0, 0), (0.3, 0), (0.3, 1))
    )
    changed = clean.train.y_N != wrong.train.y_N
    assert changed.sum() == round(0.3 * len(clean.train)) and set(wrong.train.y_N) == set(range(10))
    assert np.array_equal(clean.test.y_N, wrong.test.y_N) and np.array_equal(clean.val.y_N, wrong.val.y_N)
    assert not np.array_equal(wrong.train.y_N, other.train.y_N)


def test_near_duplicates_are_counted():
    x = pictures(30, 3, 32).transpose(0, 3, 1, 2)
    dimmed = (x[:3] * 0.8 + 10).astype(np.uint8)  # the same pictures, saved darker
    on_meta = np.zeros((1, 3, 32, 32), np.uint8)
    train = Split(np.concatenate([x[:20], on_meta]), np.zeros(21, np.int64))
    test = Split(np.concatenate([x[20:], x[5:7], dimmed, on_meta, on_meta + 1]), np.zeros(17, np.int64))
    assert near_duplicates(train, test) == {"exact": 3, "near": 6}
    assert near_duplicates(train, Split(x[20:, :, :8], np.zeros(10, np.int64))) == {"exact": 0, "near": None}


# Files


def test_multi_label_arrays_keep_their_labels_and_classes_choose_among_them(tmp_path):
    arrays = medmnist_arrays(labels=5, channels=1)
    np.savez(tmp_path / "a.npz", **arrays)
    data, part = Npz(path=str(tmp_path / "a.npz")).load(0), Npz(path=str(tmp_path / "a.npz"), classes=[4, 1]).load(0)
    assert data.task is Task.multi_label and data.shape == (1, 28, 28) and data.num_classes == 5
    assert np.array_equal(data.test.y_N, arrays["test_labels"])
    assert np.array_equal(part.test.y_N, arrays["test_labels"][:, [4, 1]]) and len(part.test) == len(data.test)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"test_images": None, "test_labels": None}, "has no test split; it has train, val"),
        ({"val_labels": None}, "val_images but no val_labels"),
        ({"train_images": np.zeros((150, 5), np.uint8)}, r"train_images has shape \(150, 5\)"),
        ({"train_labels": np.zeros((9, 1), int)}, r"train_labels has shape \(9, 1\) for 150 images"),
        ({"train_labels": np.full((150, 1), 0.5)}, "train_labels are not whole numbers"),
        ({"test_images": np.zeros((150, 30, 30, 3), np.uint8)}, "images have different shapes"),
        ({"train_labels": np.full((150, 1), 9)}, "no image of class 3"),
        ({"train_labels": np.arange(150)[:, None] % 2}, "train split has no image of class 2"),
    ],
)
def test_arrays_that_cannot_be_a_set(change, message, tmp_path):
    arrays = {name: value for name, value in {**medmnist_arrays(), **change}.items() if value is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        Npz(path=str(tmp_path / "a.npz")).load(0)


def test_an_npz_cannot_run_code_and_garbage_is_named(tmp_path):
    np.savez(tmp_path / "pickled.npz", train_images=np.array([object()], dtype=object))
    (tmp_path / "garbage.npz").write_bytes(b"PK\x03\x04 nothing")
    for name in ("pickled", "garbage"):
        with pytest.raises(UserError, match=f"{name}.npz is not a .npz file that can be read"):
            Npz(path=str(tmp_path / f"{name}.npz")).load(0)


@pytest.fixture
def cats_and_dogs(tmp_path):
    """A folder of 40 pictures, 24 x 20, of two classes; no splits of its own."""
    for c, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(pictures(1, 3, 24, 100 * c + i)[0][:20]).save(tmp_path / "pets" / name / f"{i}.png")
    return lambda **fields: Folder(path=str(tmp_path / "pets"), cache=str(tmp_path / "cache"), size=20, **fields)


def test_pictures_are_cut_in_the_middle_and_decoded_once(cats_and_dogs, tmp_path):
    data = cats_and_dogs().load(0)
    assert data.shape == (3, 20, 20) and data.class_names == ("cat", "dog")
    assert [len(split) for split in data.splits.values()] == [28, 4, 8]
    everything = {x.tobytes() for split in data.splits.values() for x in split.x_NCHW}
    assert pictures(1, 3, 24, 7)[0][:20, 2:22].transpose(2, 0, 1).tobytes() in everything
    (folder,) = (tmp_path / "cache").glob("folder*")
    before = (folder / "images.npy").stat().st_mtime_ns
    again = cats_and_dogs(train_size=4).load(0)
    assert (folder / "images.npy").stat().st_mtime_ns == before and again.fingerprint == data.fingerprint
    assert cats_and_dogs(channels=1).load(0).shape == (1, 20, 20)


def test_a_corrupt_picture_is_named_and_left_out_only_when_asked(cats_and_dogs, tmp_path):
    (tmp_path / "pets" / "dog" / "3.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(UserError, match="cannot read .*dog/3.png: .*; data.skip_corrupt=true leaves such files out"):
        cats_and_dogs().load(0)
    data = cats_and_dogs(skip_corrupt=True).load(0)
    assert len(data.skipped) == 1 and "dog/3.png" in data.skipped[0]
    assert sum(len(split) for split in data.splits.values()) == 39


def test_a_folder_that_is_no_set_is_named(tmp_path, cats_and_dogs):
    (tmp_path / "pets" / "fox").mkdir()
    with pytest.raises(UserError, match="fox"):
        cats_and_dogs().load(0)
    (tmp_path / "pets" / "fox").rmdir()
    (tmp_path / "pets" / "test").mkdir()
    with pytest.raises(UserError, match="unknown split folder in .*pets '(cat|dog)'"):
        cats_and_dogs().load(0)


# Textures


def test_textures_are_those_of_their_fields():
    first, again = Textures(**SMALL).load(0), Textures(**SMALL).load(7)
    assert np.array_equal(first.train.x_NCHW, again.train.x_NCHW) and first.fingerprint == again.fingerprint
    others = [Textures(**SMALL, **fields).load(0) for fields in ({"instance": 1}, {"dial": 0.5}, {"texture_seed": 1})]
    assert len({first.fingerprint, *(data.fingerprint for data in others)}) == 4
    assert not {x.tobytes() for x in first.train.x_NCHW} & {x.tobytes() for x in others[0].train.x_NCHW}
    for size, channels, classes in ((8, 1, 3), (40, 3, 9)):
        data = Textures(size=size, channels=channels, num_classes=classes, per_class=12).load(0)
        assert data.shape == (channels, size, size) and data.num_classes == classes


def test_the_dial_moves_every_parameter_evenly():
    at = [Textures(dial=dial)._parameters(3) for dial in (0.0, 0.5, 1.0)]
    for name in at[0]:
        steps = [at[1][name] - at[0][name], at[2][name] - at[1][name]]
        assert steps[0] == pytest.approx(steps[1]) and abs(steps[0]) > 0


def test_another_table_of_patients_is_another_set():
    first, second = (whole([0, 1, 0, 1], groups=np.array(groups)) for groups in (list("aabb"), list("abab")))
    assert first.fingerprint != second.fingerprint != whole([0, 1, 0, 1]).fingerprint
