"""A first run on this device, and the same run on the CPU

The default arm over two epochs, the fewest that its strategy takes, in float32 and in bf16 mixed precision; then in float32 on
the CPU with the same donor, which the first run has trained. The first step's loss must agree to within 1e-3, the records must
have the same keys, and the networks must be exported to files that give the same logits.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from measure import CUDA, Figure, composed

from layergraft.runs.export import export
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute

TOLERANCE = 1e-3
FORMATS = ("safetensors", "torch.export")


@dataclass
class Ran:
    record: dict[str, Any]
    first_loss: float
    seconds: float


class FirstLoss(pl.Callback):
    """What the loss of the first training step is."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            self.loss = float(outputs["loss"])


def ran(outputs: Path, device: str, precision: str, overrides: Sequence[str]) -> Ran:
    """Raises RuntimeError for a run that is not completed, or whose record or export is not whole."""
    config = composed(f"exec={device}", f"precision={precision}", "schedule.epochs=2", f"exec.outputs={outputs}", *overrides)  # fmt: skip
    first, start = FirstLoss(), time.perf_counter()
    record = execute(plan_run(config), [first])
    seconds = time.perf_counter() - start
    what = f"the run in {precision} on {device}"
    if record.status != "completed":
        raise RuntimeError(f"{what} {record.status}:\n{record.traceback or record.error}")
    wrong = [name for name, value in record.metrics.items() if value is not None and not math.isfinite(value)]
    if wrong or record.environment["device"].startswith("CPU") != (device == "cpu"):
        raise RuntimeError(f"{what}: not finite: {wrong}; it ran on {record.environment['device']}")
    for form in FORMATS:
        suffix = {"torch.export": "pt2"}.get(form, form)
        export(outputs, record.key, form, outputs / f"network.{suffix}")  # raises where the logits differ
    return Ran(record, first.loss, seconds)


def figures(overrides: Sequence[str] = ()) -> Iterator[Figure]:
    device = "cuda" if CUDA else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        there, here = Path(folder) / "there", Path(folder) / "here"
        full = ran(there, device, "float32", overrides)
        yield Figure(f"the default arm on {device}, float32, s", f"{full.seconds:.1f} (n = 1)", more=accuracy(full))
        for made in ("donors", "networks"):
            shutil.copytree(there / made, here / made)
        cpu = ran(here, "cpu", "float32", overrides)
        yield Figure("the same on the CPU, float32, s", f"{cpu.seconds:.1f} (n = 1)", more=accuracy(cpu))
        worst = abs(full.first_loss - cpu.first_loss)
        yield Figure("first-step loss in float32, difference from the CPU", f"{worst:.1e} (n = 1)", f"{TOLERANCE:g} or less",
                     worst <= TOLERANCE, f"{full.first_loss:.6f} and {cpu.first_loss:.6f}")  # fmt: skip
        low = ran(there, device, "bf16_mixed", overrides)
        yield Figure(
            "the same in bf16, s",
            f"{low.seconds:.1f} (n = 1)",
            more=f"{accuracy(low)}, first-step loss {low.first_loss:.6f}",
        )
        yield Figure("export formats that give the same logits", ", ".join(FORMATS), "all", True)
        there = [{name for name, value in vars(run.record).items() if value} for run in (cpu, full, low)]
        missing = sorted(set.union(*there) - set.intersection(*there))
        yield Figure(
            "record keys missing from some of the three runs", ", ".join(missing) or "none", "none", not missing
        )
        same = cpu.record.key == full.record.key
        yield Figure("the same run key in float32 on both devices", "yes" if same else "no", "yes", same)
    if missing or not same or not worst <= TOLERANCE:
        raise RuntimeError(f"{device} and the CPU do not do the same work: see the goals that were missed")


def accuracy(run: Ran) -> str:
    return (
        f"its test accuracy {run.record.metrics['test/acc']:.1f}%, training {run.record.timings['fit_seconds']:.1f} s"
    )
