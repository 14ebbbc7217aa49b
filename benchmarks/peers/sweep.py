"""The cells of layergraft's default sweep as one writes them without it: Hydra, Lightning and torchvision.

    python benchmarks/peers/sweep.py strategy=hybrid site=late              one cell
    python benchmarks/peers/sweep.py -m strategy=freeze,full seed=0,1       a sweep, one job after the other
    ... hydra/launcher=joblib hydra.launcher.n_jobs=2                       two at a time

`commands` gives the three sweeps that together are the 32 cells a seed of `layergraft train -m +experiment=quickstart`.
This is the other side of a benchmark: it imports nothing of layergraft, and leaves Lightning's defaults as they are.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
import numpy as np
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Accuracy
from torchvision import transforms
from torchvision.models.resnet import BasicBlock

IMAGE_SIZE, IMAGE_CHANNELS = 8, 1


def commands(seeds: Sequence[int], launcher: str = "basic") -> list[list[str]]:
    """The sweeps that make all cells of `seeds`: three, since a product of axes cannot leave cells out.

    `launcher` is basic or joblib. Append overrides to each, such as hydra.sweep.dir=DIR, the same for all three: the
    donors lie there. Seeds and sites are the outermost and innermost axis, so that jobs side by side want different donors.
    """
    program = [sys.executable, str(Path(__file__).resolve()), "-m", f"seed={','.join(map(str, seeds))}"]
    program += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    hosts, sites = "host=resnet20,resnet32", "site=early,middle,late"
    return [
        [*program, hosts, "strategy=freeze,low_lr,hybrid,full", sites],
        [*program, hosts, "donor=none", "strategy=full"],
        [*program, hosts, "strategy=freeze", "donor=random", sites],
    ]


class ImageDataset(Dataset):
    """Images in memory behind a torchvision transform, as torchvision's MNIST is."""

    def __init__(self, images_NHW: np.ndarray, labels_N: np.ndarray, transform: transforms.Compose) -> None:
        self.images_NHW, self.labels_N, self.transform = images_NHW, labels_N, transform

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images_NHW[index])), int(self.labels_N[index])


class Digits(pl.LightningDataModule):
    """scikit-learn's digits of some classes, relabelled from 0; `train_size` of the training images, or all."""

    def __init__(self, classes: Sequence[int], batch_size: int, train_size: int | None, cfg: DictConfig) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.eval_batch_size = batch_size, cfg.num_workers, cfg.data.eval_batch_size
        images_N64, labels_N = load_digits(return_X_y=True)
        images_NHW = np.round(images_N64 * (255 / 16)).astype(np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE)

        # Split before classes are chosen, and by a fixed seed: runs differ in the training images alone.
        rest, test = train_test_split(np.arange(len(labels_N)), test_size=1 / 2, stratify=labels_N, random_state=0)
        train, val = train_test_split(rest, test_size=1 / 3, stratify=labels_N[rest], random_state=0)
        train, val, test = (rows[np.isin(labels_N[rows], classes)] for rows in (train, val, test))
        if train_size is not None:
            train, _ = train_test_split(train, train_size=train_size, stratify=labels_N[train], random_state=cfg.seed)

        pixels = images_NHW[train] / 255
        plain = [transforms.ToTensor(), transforms.Normalize([pixels.mean()], [pixels.std()])]
        crop = transforms.RandomCrop(IMAGE_SIZE, padding=cfg.data.shift)
        targets_N = np.searchsorted(sorted(classes), labels_N)
        self.train = ImageDataset(images_NHW[train], targets_N[train], transforms.Compose([crop, *plain]))
        self.val = ImageDataset(images_NHW[val], targets_N[val], transforms.Compose(plain))
        self.test = ImageDataset(images_NHW[test], targets_N[test], transforms.Compose(plain))

    def _loader(self, dataset: Dataset, batch_size: int, **kwargs: bool) -> DataLoader:
        return DataLoader(
            dataset, batch_size, num_workers=self.num_workers, persistent_workers=self.num_workers > 0,
            multiprocessing_context="fork" if self.num_workers else None,  # within joblib's workers it would be loky
            pin_memory=torch.cuda.is_available(), **kwargs,
        )  # fmt: skip

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test, self.eval_batch_size)


class PadShortcut(nn.Module):
    """The skip without parameters (He et al. 2016, option A): every other pixel, zeros as new channels."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.pad(x_NCHW[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))


class CifarResNet(nn.Module):
    """He et al. 2016, section 4.2, of 6 x `blocks` + 2 layers."""

    def __init__(self, blocks: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(IMAGE_CHANNELS, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(*(BasicBlock(width, width) for _ in range(blocks)))
        self.layer2 = self._stage(blocks, width, 2 * width)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(blocks: int, channels: int, planes: int) -> nn.Sequential:
        first = BasicBlock(channels, planes, stride=2, downsample=PadShortcut(planes - channels))
        return nn.Sequential(first, *(BasicBlock(planes, planes) for _ in range(blocks - 1)))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        x_NCHW = self.layer3(self.layer2(self.layer1(x_NCHW)))
        return self.fc(x_NCHW.mean((2, 3)))


class Classifier(pl.LightningModule):
    """Adam on `groups` of parameters, each at its own rate, constant or going to 0 by half a cosine, step by step."""

    def __init__(self, network: nn.Module, groups: list[dict], lr: float, num_classes: int, cosine: bool) -> None:
        super().__init__()
        self.network, self.groups, self.lr, self.cosine = network, groups, lr, cosine
        self.val_acc = Accuracy(task="multiclass", num_classes=num_classes)
        self.test_acc = Accuracy(task="multiclass", num_classes=num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.network(x_NCHW)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x_NCHW, y_N = batch
        loss = F.cross_entropy(self(x_NCHW), y_N)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_acc)

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, accuracy: Accuracy) -> None:
        x_NCHW, y_N = batch
        logits_NK = self(x_NCHW)
        accuracy(logits_NK, y_N)
        self.log(f"{stage}/loss", F.cross_entropy(logits_NK, y_N))
        self.log(f"{stage}/acc", accuracy, prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.groups, lr=self.lr)
        if not self.cosine:
            return optimizer
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Freezing(pl.Callback):
    """Keeps batch norms of what is frozen in evaluation mode, and lets the donor learn from epoch `thaw_epoch` on."""

    def __init__(self, frozen: list[nn.Module], donor: nn.Module | None, thaw_epoch: int | None) -> None:
        self.frozen, self.donor, self.thaw_epoch = frozen, donor, thaw_epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for module in self.frozen:
            module.eval()
        if trainer.current_epoch == self.thaw_epoch and self.donor is not None:
            self.donor.requires_grad_(True)


def fit(
    module: Classifier, data: Digits, epochs: int, cfg: DictConfig, out: Path, callbacks: list[pl.Callback]
) -> dict[str, float]:
    """Train, and test once, at the end."""
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator=cfg.accelerator, devices=1, precision=cfg.precision,
        logger=TensorBoardLogger(out, name="tensorboard"), callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return trainer.test(module, datamodule=data)[0]


def donor_state(site: nn.Conv2d, cfg: DictConfig) -> dict[str, Tensor]:
    """Weights of a convolution of the site's shape: trained by the first job that wants it, read by the others."""
    pl.seed_everything(cfg.seed, workers=True)
    conv = nn.Conv2d(site.in_channels, site.out_channels, 3, site.stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if cfg.donor.name == "random":
        return conv.state_dict()

    name = f"conv{conv.in_channels}-{conv.out_channels}-stride{conv.stride[0]}-seed{cfg.seed}"
    file = Path(cfg.donor_dir) / f"{name}.pt"
    if not file.exists():
        train_donor(conv, cfg, file.with_suffix(""))
        unfinished = file.with_suffix(f".{os.getpid()}")
        torch.save(conv.state_dict(), unfinished)
        os.replace(unfinished, file)  # at once: another job may look for it meanwhile
    return torch.load(file)


def train_donor(conv: nn.Conv2d, cfg: DictConfig, out: Path) -> None:
    """Train the one layer, in place, between (where it takes more channels than the image has) a lift and a head."""

    def conv_bn_relu(channels: int, width: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

    width, num_classes = cfg.donor.head_width, len(cfg.data.donor_digits)
    network = nn.Sequential(
        *(conv_bn_relu(IMAGE_CHANNELS, conv.in_channels) if conv.in_channels != IMAGE_CHANNELS else []),
        *(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()),
        *conv_bn_relu(conv.out_channels, width),
        *(nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(4 * width, num_classes)),
    )
    groups = [{"params": network.parameters()}]
    module = Classifier(network, groups, cfg.donor.lr, num_classes, cosine=False)
    data = Digits(cfg.data.donor_digits, cfg.donor.batch_size, None, cfg)
    fit(module, data, cfg.donor.epochs, cfg, out, [])


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    out = Path(HydraConfig.get().runtime.output_dir)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    strategy, num_classes = cfg.strategy, len(cfg.data.digits)

    pl.seed_everything(cfg.seed, workers=True)
    host = CifarResNet(cfg.host.blocks, cfg.host.width, num_classes)
    frozen = [host.get_submodule(path) for path in strategy.frozen]
    for module in frozen:
        module.requires_grad_(False)

    donor, thaw_epoch = None, None
    if cfg.donor.name != "none":
        donor = host.get_submodule(cfg.host.sites[cfg.site])
        donor.load_state_dict(donor_state(donor, cfg))
        thaw_epoch = None if strategy.thaw_at is None else round(strategy.thaw_at * cfg.epochs)
        donor.requires_grad_(thaw_epoch == 0)

    own = set(donor.parameters()) if donor is not None else set()
    groups = [{"params": [p for p in host.parameters() if p.requires_grad and p not in own], "name": "rest"}]
    if thaw_epoch is not None:
        groups.append({"params": list(own), "lr": strategy.donor_scale * cfg.optim.lr, "name": "donor"})

    pl.seed_everything(cfg.seed, workers=True)  # the same, whether the donor was there or had to be trained
    module = Classifier(host, groups, cfg.optim.lr, num_classes, cosine=True)
    data = Digits(cfg.data.digits, cfg.optim.batch_size, cfg.data.train_size, cfg)
    callbacks = [Freezing(frozen, donor, thaw_epoch), LearningRateMonitor(logging_interval="epoch")]
    result = fit(module, data, cfg.epochs, cfg, out, callbacks)
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
