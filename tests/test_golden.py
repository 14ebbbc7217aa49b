"""Golden runs: short ones whose losses are kept, so that a refactor that moves a number shows. What is meant to move them raises
RESULT_VERSION; `python tests/test_golden.py` then writes them anew.

Losses after three epochs agree to 2e-7 with other kernels of the processor (ATEN_CPU_CAPABILITY=default); a changed seed, order or
rate moves them by far more.
"""

import json
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from conftest import PLAIN
from layergraft.config.compose import conf_dir, normalize_overrides, to_config
from layergraft.runs.plan import plan_run
from layergraft.runs.train import execute

KEPT = Path(__file__).with_suffix(".json")
TOLERANCE = 1e-5
SMALL = [
    *PLAIN,
    "host.width=4",
    "schedule.epochs=3",
    "optim.batch_size=25",
    "exec=cpu",
    "exec.threads=1",
    "exec.similarity.resamples=0",
]
DONOR = ["donor.schedule.epochs=1", "donor.data=digits_5_to_9"]
RUNS = {
    "hybrid, early": [*DONOR],
    "frozen, late, sgd, cosine": [*DONOR, "strategy=freeze", "site=late", "host=resnet8", "optim=sgd", "schedule=cosine"],
    "parallel behind a gate, random": ["donor=random", "surgery=parallel", "surgery.gate=0.5", "strategy=low_lr", "host=resnet20", "site=middle"],
    "a block, drawn to its start": [*DONOR, "donor.kind=block", "strategy=l2_sp", "site=layer2.0", "host=resnet8", "optim=adamw"],
    "another width, projected": [*DONOR, "donor.out_channels=6", "surgery.channel_matching=project", "site=late", "host=resnet8", "strategy=gradual"],
    "augmented and averaged": ["donor=gabor", "data.shift=1", "data.flip=true", "regularizer.mixup=0.2", "regularizer.ema=0.9", "host=resnet8"],
    "rates by gradient, group norm": [*DONOR, "strategy=auto_rgn", "host.norm=group", "host=resnet8"],
    "without a donor": ["donor=none", "strategy=full", "host=resnet8", "schedule.warmup=1"],
    "into a pretrained host": ["donor=random", "host=resnet8", "data=digits_b_blurred", "host.pretrain.data=digits_a", "host.pretrain.schedule.epochs=3"],
}  # fmt: skip


def losses(name, outputs):
    """Training loss of each epoch, and validation and test loss at the end."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        asked = normalize_overrides([*SMALL, *RUNS[name], f"exec.outputs={outputs}"])
        record = execute(plan_run(to_config(compose("config", asked))))
    assert record.status == "completed", record
    curves = pd.read_csv(outputs / "runs" / record.key / "curves.csv")
    return [*curves["train/loss"], curves["val/loss"].iloc[-1], record.metrics["test/loss"]]


@pytest.mark.parametrize("name", RUNS)
def test_the_same_losses(name, tmp_path):
    assert losses(name, tmp_path) == pytest.approx(json.loads(KEPT.read_text())[name], rel=TOLERANCE)


def test_a_changed_rate_would_show(tmp_path, monkeypatch):
    monkeypatch.setitem(RUNS, "without a donor", [*RUNS["without a donor"], "optim.lr=0.00101"])
    assert losses("without a donor", tmp_path) != pytest.approx(
        json.loads(KEPT.read_text())["without a donor"], rel=TOLERANCE
    )


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        KEPT.write_text(json.dumps({name: losses(name, Path(folder)) for name in RUNS}, indent=1) + "\n")
