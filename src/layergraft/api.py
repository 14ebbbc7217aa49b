"""What the command line does, from Python, in the same words. `import layergraft` has all of it.

    host, donor = Host("resnet20", width=8), Donor("trained", data=Data("digits", half="A"))
    print(graft(host, donor, site="late", data="digits"))
    run = fit(host, donor, site="late", strategy="hybrid", data="digits", schedule={"epochs": 10}, seed=0)
    runs = load_runs("outputs/runs")

`Host`, `Donor`, `Data`, `Surgery` and `Strategy` each choose from the config group of that name and set keys of it, so that
`fit` is `layergraft train` with the same overrides: the same run has the same key, whoever asks for it, and is done once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from layergraft.errors import RunFailed, UserError, require, unknown
from layergraft.store.records import RECORD, RunRecord

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from layergraft.config.schema import Config
    from layergraft.surgery import Grafted


class Choice:
    """A choice from a group of the config, and values for its keys; deeper ones have a dot or are in a dictionary."""

    group: ClassVar[str]

    def __init_subclass__(cls, group: str | None = None) -> None:
        cls.group = group or cls.group

    def __init__(self, name: str, /, **keys: Any) -> None:
        self.name, self.keys = name, keys

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.overrides())})"

    def overrides(self, at: str | None = None) -> list[str]:
        """As the command line has it: `host=resnet20`, `host.width=8`."""
        at = at or self.group
        return [f"{at}={self.name}", *_values(at, self.keys)]


class Host(Choice, group="host"):
    """The network that receives the donor: `Host("resnet50", weights="IMAGENET1K_V2")`, or a module of your own that takes the
    data's images and gives logits: `Host(module, head="fc", blocks=["layer1.0", "layer1.1"])`.

    A module's weights are those that it has now. `head`, the classifier, and optionally `blocks`, `stages` and `stem` are module
    paths, one or several. Its convolutions are sites, its blocks are too. The module stays in this process: in another one,
    `Host(module, ...)` has to be made again before a run with it is loaded. Raises UserError for a path that is not there.
    """

    def __init__(self, network: str | nn.Module, **keys: Any) -> None:
        if isinstance(network, str):
            super().__init__(network, **keys)
        else:
            from layergraft.hosts.user_module import give

            paths = {key: keys.pop(key) for key in ("blocks", "stages", "stem", "head") if key in keys}
            super().__init__("module", **give(network, **paths), **keys)


class Data(Choice, group="data"):
    """A data set: `Data("folder", path="my_images")`."""


class Surgery(Choice, group="surgery"):
    """How the donor goes in: `Surgery("parallel", gate=0.0)`."""


class Strategy(Choice, group="strategy"):
    """What learns when, and how fast: `Strategy("hybrid", phases={"thaw": {"epoch": 3}})`."""


class Donor(Choice, group="donor"):
    """The layer that goes in: `Donor("trained", data="digits_5_to_9")`, `Donor(path="my.pt", layer="conv1")`, or a module of
    torch's: a convolution, a residual block with torchvision's names, or one like the site's own. What weights do not tell (stride,
    padding) is the site's."""

    def __init__(self, layer_or_name: str | nn.Module | None = None, **keys: Any) -> None:
        self.module = None if layer_or_name is None or isinstance(layer_or_name, str) else layer_or_name
        from_file = self.module is not None or "path" in keys
        name = layer_or_name if isinstance(layer_or_name, str) else "extracted" if from_file else "trained"
        if isinstance(keys.get("data"), str):
            keys["data"] = Data(keys["data"])
        super().__init__(name, **keys)

    def written(self, outputs: Path) -> Donor:
        """The same donor with a module as a file in `outputs`/given, named by its content."""
        if self.module is None:
            return self
        from safetensors.torch import save

        from layergraft.store.files import digest, write_atomic

        content = save({name: t.detach().cpu().contiguous() for name, t in self.module.state_dict().items()})
        path = outputs / "given" / f"{digest(content)}.safetensors"
        if not path.exists():
            write_atomic(path, content)
        return Donor(self.name, path=str(path), **self.keys)


@dataclass(frozen=True)
class Run:
    """A run that is in the store."""

    folder: Path
    record: RunRecord
    """record.json: axes, config, environment, metrics, probes, similarity, timings."""

    @property
    def key(self) -> str:
        """Its name in the store: axes, seed and the hash of all that decides its numbers."""
        return self.record.key

    @property
    def metrics(self) -> dict[str, float | None]:
        """The metrics that runs are compared by: `test/acc` and `val/acc` in percent, the others of the data's task, steps to
        accuracies (None: never). `record.units` has their units."""
        return self.record.metrics

    @property
    def curves(self) -> pd.DataFrame:
        """A row an epoch: losses, accuracies in percent, the learning rate of each group."""
        import pandas as pd

        return pd.read_csv(self.folder / "curves.csv")

    @property
    def predictions(self) -> pd.DataFrame:
        """A row a test image: `row` (which of the data set as its files have it), `label` (of a multi-label set `label_0`,
        `label_1`, ...), and the logits `logit_0`, `logit_1`, ... Classes are numbered as `record.data` lists them."""
        from layergraft.store.predictions import read_predictions

        return read_predictions(self.folder)

    def network(self) -> nn.Module:
        """The trained network, in evaluation mode. It takes x_NCHW float32, normalised as `record.normalization` says, and gives
        logits (N, classes)."""
        from layergraft.runs.export import trained_network

        return trained_network(self.folder.parents[1], self.key)[0]

    def __repr__(self) -> str:
        return f"Run({self.key}: test accuracy {self.metrics['test/acc']:.1f}%)"


def graft(host: Host | str, donor: Donor | str | nn.Module, **options: Any) -> Grafted:
    """Put the donor, which is made where the store does not have it, into the host; trains no host. Options: those of
    `fit`.

    `grafted.network` is a torch module that takes x_NCHW and gives logits, for a training loop of one's own;
    `grafted.host` is the host before; `print` says what was done. Raises UserError, in one line, for what cannot be.
    """
    config = _config(host=host, donor=donor, **options)
    from layergraft.runs.build import set_threads
    from layergraft.runs.plan import plan_run

    set_threads(config)
    plan = plan_run(config)
    require(bool(plan.grafts), "donor=none puts nothing in, so there is no surgery")
    return plan.build().grafted


def fit(host: Host | str, donor: Donor | str | nn.Module = "none", **options: Any) -> Run:
    """Train by a strategy, as `layergraft train` does, unless the store has the run.

    Options: `data`, `surgery`, `strategy`, `optim`, `schedule` (a choice, its name, or a dictionary of its keys), `site`, `seed`,
    `precision`, `exec` ({"outputs": DIR, "device": "cpu"}), `overrides` (more, as the command line has them) and `config_dir` (a
    folder with choices of one's own). Raises UserError, in one line, for what cannot be, before any training; RunFailed for
    a run that failed or diverged.
    """
    config = _config(host=host, donor=donor, **options)
    from layergraft.runs.plan import plan_run
    from layergraft.runs.train import execute

    plan = plan_run(config)
    record = execute(plan)
    if record.status != "completed":
        raise RunFailed(f"the run {record.status}: {record.error} (see {plan.folder / RECORD})")
    return Run(plan.folder, record)


def load_runs(*folders: str | Path, where: str | None = None, metrics: Sequence[str] = ()) -> pd.DataFrame:
    """A row a run of sweeps (outputs/sweeps/NAME) or of folders of runs (by default outputs/runs): key, status, axes, what was
    swept, metrics, what its host and donors were and what it cost (docs/report.md). `where` keeps some, as `layergraft report
    --where` does. `metrics` (test/NAME) are there too if they were registered after the runs were done: they are computed from
    the runs' predictions. Raises UserError for one that none of them has."""
    from layergraft.report.table import read

    runs = read([Path(folder) for folder in folders or ["outputs/runs"]], where, metrics)
    for name in metrics:
        if name not in runs.units:
            raise unknown("metric of these runs:", name, runs.units)
    return runs.table


def _config(
    *, donor: Donor | str | nn.Module, overrides: Sequence[str] = (), config_dir: str | Path | None = None, **given: Any
) -> Config:
    """The config of these choices, composed as the command line does. Raises UserError."""
    from hydra import compose, initialize_config_dir

    from layergraft.config.compose import conf_dir, normalize_overrides, to_config
    from layergraft.config.error_messages import explain
    from layergraft.config.security import require_below

    settings = given.get("exec")
    outputs = Path((settings if isinstance(settings, Mapping) else {}).get("outputs", "outputs"))
    given["donor"] = (donor if isinstance(donor, Donor) else Donor(donor)).written(outputs)
    asked = [*_values("", given), *overrides]
    if config_dir is not None:
        require(Path(config_dir).is_dir(), f"config_dir is {config_dir}; there is no such folder")
        asked.append(f"hydra.searchpath=[{_text(f'file://{Path(config_dir).resolve()}')}]")
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="layergraft"):
            composed = compose("config", normalize_overrides(asked))
        if config_dir is not None:
            require_below(composed, asked)
        return to_config(composed)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        raise UserError(line) from None


def _values(at: str, keys: Mapping[str, Any]) -> Iterator[str]:
    for name, value in keys.items():
        key = f"{at}.{name}" if at else name
        if isinstance(value, Choice):
            yield from value.overrides(key)
        elif isinstance(value, Mapping) and value:
            yield from _values(key, value)
        else:
            yield f"{'++' if '.' in key else ''}{key}={_text(value)}"


def _text(value: Any) -> str:
    """`value` in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_text(item)}' for key, item in value.items())}}}"
    from hydra.core.override_parser.types import Quote, QuotedString

    text = str(value)
    if re.fullmatch(r"[A-Za-z_][\w./-]*", text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    return QuotedString(text, Quote.single).with_quotes()
