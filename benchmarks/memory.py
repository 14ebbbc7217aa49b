"""Peak memory of a run over that of a plain PyTorch program

`layergraft train donor=none` as it comes (Hydra, Lightning, probes, TensorBoard), and benchmarks/peers/plain.py, on the
same file of 512 + 256 + 256 images of 32 x 32: resnet18, width 64, one epoch, on the CPU. Each is a process of its
own; the figure is its largest resident set. What is allocated on a GPU is with `run_time`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from measure import Figure, at_most, peak_mb

PLAIN = Path(__file__).parent / "peers" / "plain.py"


def figures(repeats: int = 5) -> list[Figure]:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file, arrays = Path(folder) / "noise.npz", {}
        for part, number in (("train", 512), ("val", 256), ("test", 256)):
            arrays[f"{part}_images"] = rng.integers(0, 256, (number, 32, 32, 3), np.uint8)
            arrays[f"{part}_labels"] = np.arange(number) % 10
        np.savez(file, **arrays)
        found = []
        for batch, times in ((128, repeats), (512, 1)):
            run = ["-m", "layergraft", "train", "strategy=full", "data=npz", f"data.path={file}", "host=resnet18", "host.stem=small",
                   f"optim.batch_size={batch}", "schedule.epochs=1", "data.shift=0", "donor=none", "exec=cpu"]  # fmt: skip
            ours, theirs = [], []
            for repeat in range(times):
                theirs.append(peak_mb(PLAIN, file, batch))
                ours.append(peak_mb(*run, f"exec.outputs={folder}/{batch}.{repeat}"))
            what = f"a whole `layergraft train` over the plain program, batch {batch}"
            found.append(at_most(what, ours, theirs, 1.1, f"{ours[0]:.0f} MiB over {theirs[0]:.0f} MiB"))
        libraries = [
            peak_mb("-c", f"import {name}") for name in ("layergraft.runs.preload_imports", "torch, torchvision")
        ]
    more = "what Lightning, Hydra and the rest take, whatever the run"
    return [
        *found,
        Figure(
            "imports alone, MiB over torch's and torchvision's", f"{libraries[0] - libraries[1]:.0f} (n = 1)", more=more
        ),
    ]
