"""What there is to choose from, read off conf/, and to set, read off the dataclasses. Imports nothing heavy."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path

from omegaconf import MISSING, OmegaConf

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
            pretrain.data=DATA|none  pretrain.schedule.epochs=50  weights=IMAGENET1K_V1|FILE  head=keep|new
  donor.    kind=conv|stem|block  kernel_size=7  aux_depth=3  data=textures  data.classes=[7,8,9]  control=moments|permuted|covariance
            resolution=image|site (of trained)  path=FILE  layer=PATH (of donor=extracted)
  surgery.  channel_matching=strict|project|slice|tile|sum|average  adapter_init=least_squares|identity|random (of project)
            bias=keep|drop|fold  calibrate=none|batch_norm|moments|lsuv  images=512
            gate=0 (of insert, parallel)  position=before|after (of insert)
  strategy. phases.thaw.epoch=10  phases.thaw.plateau.patience=3  groups.tuned=[layer3]  l2_sp.graft=0.1  split.all.by=block
  optim.    lr=0.01  weight_decay=0.01  decay_1d=false  accumulate=2  clip_norm=1
            name=CLASS_OF_TORCH_OPTIM '+optim.options.betas=[0.9,0.95]'
  schedule. epochs=50  warmup=2  early_stopping.patience=5  early_stopping.metric=val/balanced_acc
  regularizer.
            label_smoothing=0.1  mixup=0.2  ema=0.999  swa=0.75
  exec.     outputs=DIR  threads=4  rerun=true  checkpoint_seconds=600  devices=2  compile=true
            probe.epochs=[0,5,-1]  probe.thresholds=[80]  allow_leak=true
  data.     train_size=50  train_per_class=10  classes=[0,1]  half=A|B  halves=semantic|images  shift=4  flip=true
            class_weights=balanced  sampler=balanced  normalize=train|[[MEANS],[DEVIATIONS]]  resplit=test
            split_seed=0  few_shot_seed=0  few_shot=stratified
            corrupt.noise=3 (blur, contrast)  corrupt.splits=[test]  corrupt.labels=0.2  corrupt.blocks=8  dial=0.5 (of textures)
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
    """What a YAML says it is: its first comment that is no directive to Hydra."""
    for line in path.read_text().splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""


def train_help(arguments: Sequence[str]) -> str:
    """The text of `layergraft train --help`."""
    from layergraft.config.compose import conf_dir
    from layergraft.config.plugins import installed
    from layergraft.hosts.sites import RELATIVE

    given = [Path(after) for name, after in pairwise(arguments) if name in ("--config-dir", "-cd")]
    given += [Path(name.partition("=")[2]) for name in arguments if name.startswith("--config-dir=")]
    sections = groups([conf_dir(), *filter(None, installed().values()), *given])
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


@dataclass(frozen=True)
class Key:
    """A key of a run's config."""

    path: str
    """optim.lr; PHASE, GROUP and the like where a name is the user's."""
    default: str
    meaning: str


NAMED = {"phases": "PHASE", "split": "GROUP"}  # keys of dictionaries whose values are specs


def keys() -> dict[str, list[Key]]:
    """Kind of spec, such as `donor: trained` -> its keys, read off the dataclasses and the docstrings of their fields.
    What kinds of one group share stands once, under the group's name."""
    from hydra.core.config_store import ConfigStore

    from layergraft.config import data_schema, schema
    from layergraft.config.compose import conf_dir  # noqa: F401  which has registered every kind

    bases: dict[str, type] = {
        "data": data_schema.DataSpec, "host": schema.HostSpec, "donor": schema.DonorSpec, "surgery": schema.SurgerySpec,
    }  # fmt: skip
    found = {"": _keys_of(schema.Config, "", tuple(bases))}
    found |= {group: _keys_of(base, group) for group, base in bases.items()}
    for group, kinds in ConfigStore.instance().repo["schema"].items():
        shared = {key.path: key for key in found[group]}
        for file, kind in kinds.items():
            own = [key for key in _keys_of(OmegaConf.get_type(kind.node), group) if shared.get(key.path) != key]
            found[f"{group}: {file.removesuffix('.yaml')}"] = [key for key in own if not key.path.endswith(".name")]
    return {title: every for title, every in found.items() if every}


def _keys_of(spec: typing.Any, at: str, left_out: Sequence[str] = ()) -> list[Key]:
    """Of a dataclass."""
    meanings: dict[str, str] = {}
    for kind in reversed(spec.__mro__):
        if dataclasses.is_dataclass(kind):
            meanings |= _field_docstrings(kind)
    found = []
    for field in dataclasses.fields(spec):
        if field.name in left_out:
            continue
        path = f"{at}.{field.name}" if at else field.name
        hint = typing.get_type_hints(spec)[field.name]
        inner = next((kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)), None)
        is_said_elsewhere = field.default is MISSING or (at == "donor" and field.name in ("optim", "schedule"))
        if at == "host.pretrain" and inner is not None:  # its keys are those of the group
            found.append(Key(path, "none" if field.name == "data" else "", meanings.get(field.name, "")))
        elif inner is None:
            found.append(Key(path, _default(field), meanings.get(field.name, "")))
        elif not is_said_elsewhere:
            found += _keys_of(inner, f"{path}.{NAMED[field.name]}" if field.name in NAMED else path)
    return found


def _field_docstrings(kind: typing.Any) -> dict[str, str]:
    """Field -> the string that stands after it in the class."""
    (spec,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(spec, ast.ClassDef)
    return {
        line.target.id: " ".join(inspect.cleandoc(after.value.value).split())
        for line, after in pairwise(spec.body)
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    }  # fmt: skip


def _default(field: dataclasses.Field[typing.Any]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "" if value == MISSING else value.name if isinstance(value, Enum) else str(value)
