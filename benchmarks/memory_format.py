"""A training step with a pixel's channels side by side in memory, over one with them apart

Forward, backward and fused Adam on one batch, alone: the network's own pace. On a CPU one thread, as in a sweep. `exec.channels_last`
is left to layergraft where it is not given: this is what its rule (`Backend.lay_out`) comes of.
"""

from __future__ import annotations

import copy

import torch
from measure import CUDA, Figure, at_most, by_turns
from torch.nn import functional as F

from layergraft.config.schema import HostSpec
from layergraft.hosts import CifarResNet, TorchvisionResNet
from layergraft.training.backend import Backend

DEVICE, PRECISION = ("cuda", "bf16_mixed") if CUDA else ("cpu", "float32")
CASES: list[tuple[HostSpec, int, int]] = [
    (CifarResNet("resnet20", width=8), 8, 50),
    (CifarResNet("resnet20", width=16), 32, 32),
    (CifarResNet("resnet20", width=64), 32, 16),
    (CifarResNet("resnet20", width=64), 8, 50),
    (TorchvisionResNet("resnet18", width=16, stem="small"), 32, 16),
    (TorchvisionResNet("resnet18", width=32, stem="small"), 32, 16),
    (TorchvisionResNet("resnet18", width=64, stem="small"), 32, 16),
    (TorchvisionResNet("resnet50", width=16, stem="small"), 32, 16),
    (TorchvisionResNet("resnet50", width=64, stem="imagenet"), 64, 16),
]


def figures(repeats: int = 3) -> list[Figure]:
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for host, size, batch in CASES:
        start = host.build((3, size, size), 10, 0).to(DEVICE)
        ways, batch = {}, 16 * batch if CUDA else batch
        for name, last in (("apart", False), ("side by side", True)):
            network = copy.deepcopy(start)
            Backend(DEVICE, PRECISION, channels_last=last).lay_out(network)
            optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
            x, y = torch.randn(batch, 3, size, size, device=DEVICE), torch.randint(0, 10, (batch,), device=DEVICE)

            def steps(network=network, optimizer=optimizer, x=x, y=y, number=20 if CUDA or size == 8 else 2) -> None:
                for _ in range(number):
                    optimizer.zero_grad()
                    with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
                        loss = F.cross_entropy(network(x), y)
                    loss.backward()
                    optimizer.step()

            ways[name] = steps
        seconds = by_turns(ways, repeats)
        Backend(DEVICE, PRECISION, channels_last=None).lay_out(start)
        kernel = next(
            p for n, p in start.named_parameters() if n.startswith("layer3") and p.ndim == 4 and p.shape[2] > 1
        )
        rule = "the rule: last" if kernel.stride(1) == 1 else "the rule: first"
        named = f"{host.name}, width {host.width}, {size} x {size}, batch {batch}"
        found.append(at_most(named, seconds["side by side"], seconds["apart"], more=rule))
    torch.set_num_threads(threads)
    return found
