"""What there is to choose from, read off conf/: each YAML's first comment is its line. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

HEAD = """layergraft train [KEY=VALUE ...]        one run
layergraft train -m KEY=A,B ...         a sweep over every combination
  --cfg job                             print the composed config instead, every key in it
  --config-dir DIR                      add choices from DIR, laid out like the groups below
  -sc install=bash                      shell completion: eval "$(layergraft train -sc install=bash)"
  --hydra-help                          what Hydra itself takes

"""
TAIL = """
Keys within a group, some of them (--cfg job prints all):
  host.     width=16  norm=batch|group  skips=false  in_channels=3  stem=imagenet|small (of torchvision's)
             weights=IMAGENET1K_V1|FILE
  donor.    kind=conv|stem|block  kernel_size=7  k=3  data=textures  data.classes=[7,8,9]  control=moments|permuted|covariance
            path=FILE  layer=PATH (of donor=extracted)
  surgery.  images=512  fit=strict|project|slice|tile|sum|average  start=least_squares|identity|random (of project)
            bias=keep|drop|fold  calibrate=none|batch_norm|moments|lsuv  gate=0  where=before|after (of insert)
  strategy. phases.thaw.epoch=10  phases.thaw.plateau.patience=3  groups.tuned=[layer3]  anchor.graft=0.1  split.all.by=block
  optim.    lr=0.01  weight_decay=0.01  decay_1d=false  accumulate=2  clip_norm=1
            name=CLASS_OF_TORCH_OPTIM '+optim.options.betas=[0.9,0.95]'
  schedule. epochs=50  warmup=2  early_stopping.patience=5
  regularizer.
            label_smoothing=0.1  mixup=0.2  ema=0.999  swa=0.75
  exec.     outputs=DIR  threads=4  rerun=true  resume=CHECKPOINT  checkpoint_seconds=600  devices=2  compile=true
            probe.epochs=[0,5,-1]  probe.thresholds=[80]  traceback=true
  data.     train_size=50  train_per_class=10  classes=[0,1]  half=A|B  halves=semantic  shift=4  flip=true
            corrupt.noise=3 (blur, contrast)  corrupt.labels=0.2  corrupt.blocks=8  dial=0.5 (of textures)
            path=FILE (of npz) or DIR (of folder, dicom)  set=pathmnist (of medmnist)
"""


def groups(folders: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Group -> choice -> its line."""
    found: dict[str, dict[str, str]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.yaml"), key=_naturally):
            found.setdefault(path.parent.name, {})[path.stem] = line_of(path)
    return found


def _naturally(path: Path) -> list[str | int]:
    """resnet20 before resnet110."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def line_of(path: Path) -> str:
    """The first comment of a YAML that is no directive to Hydra."""
    for line in path.read_text().splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""


def train_help(arguments: Sequence[str]) -> str:
    """The text of `layergraft train --help`."""
    from layergraft.hosts.sites import RELATIVE
    from layergraft.packages import added
    from layergraft.runs.compose import conf_dir

    given = [
        Path(after) for name, after in zip(arguments, arguments[1:], strict=False) if name in ("--config-dir", "-cd")
    ]
    given += [Path(name.partition("=")[2]) for name in arguments if name.startswith("--config-dir=")]
    sections = groups([conf_dir(), *filter(None, added().values()), *given])
    experiments, sizes = sections.pop("experiment", {}), sections.pop("size", {})
    sections["site"] = {name: line for name, (_, line) in RELATIVE.items()}
    sections["site"]["0.0 to 1.0"] = "the one at this relative depth"
    sections["site"]["PATH"] = "any convolution, block or stage by its module path: layer3.0.conv1, layer2.1, layer4"
    sections["site"]["[A,B]"] = "several places at once; `layergraft sites host=resnet50` lists those of a host"
    order = ["strategy", "site", "host", "donor", "surgery", "data", "optim", "schedule", "exec"]
    text = HEAD
    for group in [*order, *sorted(set(sections) - set(order))]:
        text += _section(f"{group}=", sections[group])
    text += "seed=\n  NUMBER           of everything drawn by chance; 'seed=range(3)' in a sweep\n"
    text += "precision=\n  auto, float32, bf16_mixed\n"
    return text + _section("+experiment=", experiments) + _section("size= (of an experiment)", sizes) + TAIL


def _section(title: str, choices: dict[str, str]) -> str:
    return title + "\n" + "".join(f"  {name:<16} {line}\n" for name, line in choices.items())
