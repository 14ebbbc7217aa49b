"""Images a second that are made ready, over what a DataLoader with worker processes makes

Images are random, 20,000 of 32 x 32 in colour, batches of 128, moved by up to 4 pixels, mirrored, normalised: an epoch of
CIFAR-10's recipe. layergraft's own, the same with torchvision's v2 transforms and with kornia's, and what people use instead;
beside what a network takes. `streamed` reads the same images from a file that is mapped, with as many reader threads.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import CORES, CUDA, Figure, by_turns, spread
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from layergraft.data.batches import Batches, BatchSpec
from layergraft.data.image_data import ImageData, Split
from layergraft.hosts import CifarResNet

NUMBER, BATCH = 20_000, 128
EPOCH = NUMBER // BATCH * BATCH


class Images(Dataset):
    """An image at a time, as PIL's, transformed in Python: torchvision's usual."""

    def __init__(self, x_NCHW: np.ndarray, y_N: np.ndarray) -> None:
        self.x_NHWC, self.y_N = np.ascontiguousarray(x_NCHW.transpose(0, 2, 3, 1)), y_N
        self.transform = transforms.Compose([
            transforms.ToPILImage(), transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.y_N)

    def __getitem__(self, index: int):
        return self.transform(self.x_NHWC[index]), self.y_N[index]


def ways(data: ImageData, folder: Path, device: torch.device, workers: int) -> dict:
    """Name -> a function that goes through an epoch."""
    spec = BatchSpec(BATCH, shift=4, flip=True)
    ours = Batches.of(data, spec, 0, device.type).train
    np.save(folder / "x.npy", data.train.x_NCHW)
    mapped = Split(np.load(folder / "x.npy", mmap_mode="r"), data.train.y_N)
    streamed = Batches.of(
        ImageData(mapped, data.val, data.test, 10, "noise"), spec, 0, device.type, gib=0, readers=workers
    )
    plain = Batches.of(data, BatchSpec(BATCH), 0, device.type).train
    usual = DataLoader(Images(data.train.x_NCHW, data.train.y_N), BATCH, shuffle=True, drop_last=True, num_workers=workers,
                       pin_memory=device.type == "cuda", persistent_workers=workers > 0)  # fmt: skip
    # An image each its own crop: v2's transforms draw once for a whole batch, so they take an image at a time.
    crop = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])

    def of_v2():
        for x, _ in plain:
            torch.stack([crop(image) for image in x])

    def of_kornia():
        import kornia.augmentation as K

        augment = K.AugmentationSequential(K.RandomCrop((32, 32), padding=4), K.RandomHorizontalFlip()).to(device)
        for x, _ in plain:
            augment(x)

    return {
        "layergraft": lambda: [None for _ in ours],
        "layergraft, streamed from disk": lambda: [None for _ in streamed.train],
        "layergraft's batches, torchvision v2's transforms": of_v2,
        "layergraft's batches, kornia's transforms": of_kornia,
        f"torchvision in a DataLoader, {workers} workers": lambda: [x.to(device) for x, _ in usual],
    }


def training(data: ImageData, name: str, device: torch.device):
    """An eighth of an epoch of forward, backward and step on one batch that lies there: the network's own pace."""
    network = CifarResNet(name).build((3, 32, 32), 10, 0).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    x, y = torch.randn(BATCH, 3, 32, 32, device=device), torch.randint(0, 10, (BATCH,), device=device)

    def run() -> None:
        for _ in range(NUMBER // BATCH // 8):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()

    return run


def figures(repeats: int = 5, name: str = "resnet20") -> list[Figure]:
    device, rng = torch.device("cuda" if CUDA else "cpu"), np.random.default_rng(0)
    split = lambda n: Split(rng.integers(0, 256, (n, 3, 32, 32), np.uint8), rng.integers(0, 10, n))  # noqa: E731
    data = ImageData(split(NUMBER), split(64), split(64), 10, "noise")
    with tempfile.TemporaryDirectory() as folder:
        functions = ways(data, Path(folder), device, CORES)
        usual = next(way for way in functions if way.startswith("torchvision"))
        alone = f"{name} alone, a training step"
        seconds = by_turns({**functions, alone: training(data, name, device)}, repeats, warm_up=False)
    found = []
    for way, took in seconds.items():
        number = EPOCH // (8 if way == alone else 1)
        ratios = [number / a / (EPOCH / b) for a, b in zip(took, seconds[usual], strict=True)]
        more = f"{number / statistics.median(took):,.0f} images a second"
        found.append(Figure(f"{way}, over the DataLoader", spread(ratios), more=more))
    return found
