"""Small sets in the on-disk format of each real one, for the real classes to read."""

import hashlib
import json
import pickle
import struct

import numpy as np
import pydicom
import scipy.io
import torchvision
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

PER_CLASS = 12


def pictures(number, channels, size, seed=0):
    """(number, H, W, C) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (number, size, size, channels), np.uint8)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write(name, root, monkeypatch):
    """Write the set `name` below `root`; overrides of `data` to read it with."""
    return WRITERS[name](root, monkeypatch) or []


def cifar(name, classes, of_each):
    def write_it(root, monkeypatch):
        kind = getattr(torchvision.datasets, name)
        folder, key = root / kind.base_folder, "labels" if name == "CIFAR10" else "fine_labels"
        folder.mkdir(parents=True)
        written = []
        for seed, listed in enumerate((kind.train_list, kind.test_list)):
            part = []
            for number, (file, _) in enumerate(listed):
                labels = [label for label in range(classes) for _ in range(of_each)]
                x = pictures(len(labels), 3, 32, number + 10 * seed).transpose(0, 3, 1, 2)
                (folder / file).write_bytes(pickle.dumps({"data": x.reshape(len(x), -1), key: labels}))
                part.append([file, md5(folder / file)])
            written.append(part)
        meta = {**kind.meta, "md5": None}
        (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: [f"class {i}" for i in range(classes)]}))
        meta["md5"] = md5(folder / meta["filename"])
        for attribute, value in (("train_list", written[0]), ("test_list", written[1]), ("meta", meta)):
            monkeypatch.setattr(kind, attribute, value)

    return write_it


def idx(name):
    def write_it(root, monkeypatch):
        folder = root / name / "raw"
        folder.mkdir(parents=True)
        for number, stem in enumerate(("train", "t10k")):
            labels = np.repeat(np.arange(10, dtype=np.uint8), PER_CLASS)
            x = pictures(len(labels), 1, 28, number)
            header = struct.pack(">IIII", 2051, len(x), 28, 28)
            (folder / f"{stem}-images-idx3-ubyte").write_bytes(header + x.tobytes())
            (folder / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(x)) + labels.tobytes())

    return write_it


def svhn(root, monkeypatch):
    lists = {}
    for number, split in enumerate(("train", "test")):
        labels = np.repeat(np.arange(1, 11), PER_CLASS)  # SVHN writes 0 as 10
        path = root / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": pictures(len(labels), 3, 32, number).transpose(1, 2, 3, 0), "y": labels[:, None]})
        lists[split] = ["", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)


def stl10(root, monkeypatch):
    kind = torchvision.datasets.STL10
    folder = root / kind.base_folder
    folder.mkdir()
    labels = np.repeat(np.arange(1, 11, dtype=np.uint8), PER_CLASS)
    for number, split in enumerate(("train", "test")):
        x = pictures(len(labels), 3, 96, number).transpose(0, 3, 2, 1)  # columns before rows
        (folder / f"{split}_X.bin").write_bytes(x.tobytes())
        (folder / f"{split}_y.bin").write_bytes(labels.tobytes())
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    (folder / "fold_indices.txt").write_text("0 1\n")
    files = [[file, md5(folder / file)] for file in ("train_X.bin", "train_y.bin", "unlabeled_X.bin")]
    monkeypatch.setattr(kind, "train_list", files)
    monkeypatch.setattr(kind, "test_list", [[f, md5(folder / f)] for f in ("test_X.bin", "test_y.bin")])
    # md5 of an empty file is checked, its content is not read


def food101(root, monkeypatch):
    classes = ["apple_pie", "sushi", "waffles"]
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    listed = {"train": {}, "test": {}}
    for c, name in enumerate(classes):
        (folder / "images" / name).mkdir(parents=True)
        for split, numbers in (("train", range(60)), ("test", range(60, 80))):
            listed[split][name] = [f"{name}/{i}" for i in numbers]
            for i in numbers:
                image = Image.fromarray(pictures(1, 3, 20, 100 * c + i)[0])
                image.resize((24, 20)).save(folder / "images" / name / f"{i}.jpg")
    for split, files in listed.items():
        (folder / "meta" / f"{split}.json").write_text(json.dumps(files))
    (folder / "meta" / "classes.txt").write_text("\n".join(classes))


def flowers102(root, monkeypatch):
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    ids = np.arange(1, 102 * 3 + 1)
    for i in ids:
        Image.fromarray(pictures(1, 3, 9, i)[0]).save(folder / "jpg" / f"image_{i:05d}.jpg")
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": (ids[None] - 1) % 102 + 1})
    scipy.io.savemat(
        folder / "setid.mat", {"trnid": ids[None, :102], "valid": ids[None, 102:204], "tstid": ids[None, 204:]}
    )
    kind = torchvision.datasets.Flowers102
    monkeypatch.setattr(kind, "_file_dict", {
        "image": kind._file_dict["image"],
        "label": ("imagelabels.mat", md5(folder / "imagelabels.mat")),
        "setid": ("setid.mat", md5(folder / "setid.mat")),
    })  # fmt: skip


def folder(root, monkeypatch):
    for number, split in enumerate(("train", "val", "test")):
        for c, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(60 if split == "train" else PER_CLASS):
                Image.fromarray(pictures(1, 3, 20, 1000 * number + 100 * c + i)[0]).save(
                    root / split / name / f"{i}.png"
                )
    return [f"data.path={root}", "data.size=16"]


def medmnist_arrays(labels=1, channels=3, classes=3, number=150, size=28):
    arrays = {}
    for seed, split in enumerate(("train", "val", "test")):
        x = pictures(number, channels, size, seed)
        y = np.arange(number)[:, None] % classes if labels == 1 else pictures(number, 1, labels, seed)[:, 0, :, 0] % 2
        arrays |= {f"{split}_images": x[..., 0] if channels == 1 else x, f"{split}_labels": y}
    return arrays


def npz(root, monkeypatch):
    np.savez(root / "set.npz", **medmnist_arrays())
    return [f"data.path={root / 'set.npz'}"]


def medmnist(root, monkeypatch):
    np.savez(root / "pathmnist.npz", **medmnist_arrays(classes=9, number=180))


def dicom_file(path, stored, **tags):
    """`stored`: (H, W) integers, as they are in the file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.Rows, image.Columns = stored.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    image.PixelData = stored.astype("<i2" if image.PixelRepresentation else "<u2").tobytes()
    for tag, value in tags.items():
        setattr(image, tag, value)
    pydicom.dcmwrite(path, image, enforce_file_format=True)


def dicom(root, monkeypatch):
    lines = ["file,label,patient"]
    for i in range(200):
        dicom_file(root / f"{i}.dcm", pictures(1, 1, 12, i)[0, :, :, 0].astype(np.uint16) * 16)
        lines.append(f"{i}.dcm,{'sick' if i % 4 < 2 else 'well'},p{i // 2}")
    (root / "labels.csv").write_text("\n".join(lines))
    return [f"data.path={root}", "data.size=12"]


def nothing(root, monkeypatch):
    return []


WRITERS = {
    "cifar10": cifar("CIFAR10", 10, 4),
    "cifar10_test": cifar("CIFAR10", 10, 20),
    "cifar100": cifar("CIFAR100", 100, 16),
    "dicom": dicom,
    "digits": nothing,
    "digits_a": nothing,
    "digits_b_blurred": nothing,
    "digits_0_to_4": nothing,
    "digits_5_to_9": nothing,
    "fashion_mnist": idx("FashionMNIST"),
    "flowers102": flowers102,
    "folder": folder,
    "food101": food101,
    "medmnist": medmnist,
    "mnist": idx("MNIST"),
    "npz": npz,
    "stl10": stl10,
    "svhn": svhn,
    "textures": nothing,
}
