"""Training as one writes it without a framework: the plain PyTorch loop. It imports nothing of layergraft.

    python benchmarks/peers/plain.py FILE.npz BATCH     # the whole program, of {train,val}_images (N, H, W, C) uint8 and _labels

What it is compared with has the same network, batches, optimizer and number of threads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
    val: Iterable[tuple[Tensor, Tensor]],
    test: Iterable[tuple[Tensor, Tensor]],
    epochs: int,
    bf16: bool = False,
) -> list[tuple[float, ...]]:
    """Train by `batches(epoch)`, and give for each epoch the training loss, validation loss and accuracy; last the test's."""
    device = next(network.parameters()).device.type
    history: list[tuple[float, ...]] = []
    for epoch in range(epochs):
        network.train()
        losses = []
        for x_NCHW, y_N in batches(epoch):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(network(x_NCHW), y_N)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        history.append((torch.stack(losses).mean().item(), *evaluated(network, val, bf16)))
    return [*history, evaluated(network, test, bf16)]


@torch.no_grad()
def evaluated(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], bf16: bool) -> tuple[float, float]:
    """Mean loss, and the share that is right."""
    device = next(network.parameters()).device.type
    network.eval()
    total, right, count = torch.zeros((), device=device), torch.zeros((), device=device), 0
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        for x_NCHW, y_N in batches:
            logits = network(x_NCHW)
            total += F.cross_entropy(logits, y_N, reduction="sum")
            right += (logits.argmax(1) == y_N).sum()
            count += len(y_N)
    return total.item() / count, right.item() / count


def main(file: str, batch: int) -> None:
    import numpy as np
    from torchvision.models import resnet18

    splits = np.load(file)
    network = resnet18(num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    parts = ("train", "val", "test")
    x = {part: torch.from_numpy(splits[f"{part}_images"].transpose(0, 3, 1, 2).copy()) for part in parts}
    y = {part: torch.from_numpy(splits[f"{part}_labels"]) for part in parts}

    def normalised(index: Tensor | slice, part: str) -> tuple[Tensor, Tensor]:
        return (x[part][index].float() / 255 - 0.5) / 0.25, y[part][index]

    def batches(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(y["train"]))
        return (normalised(index, "train") for index in order.split(batch) if len(index) == batch)

    def whole(part: str) -> Iterable[tuple[Tensor, Tensor]]:
        return (normalised(slice(start, start + 512), part) for start in range(0, len(y[part]), 512))

    train(network, torch.optim.Adam(network.parameters(), 1e-3), batches, whole("val"), whole("test"), 1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
