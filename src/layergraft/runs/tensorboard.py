"""What TensorBoard has of a run beside its curves: the plan as a picture, the HParams tab, a chart for each strategy."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from layergraft.config.registry import canonical
from layergraft.runs.plan import RunPlan
from layergraft.store.records import RunRecord
from layergraft.strategies.timeline import picture
from layergraft.training.fit import EventsLogger, Fitted


def write_figures(plan: RunPlan, fitted: Fitted, record: RunRecord) -> None:
    """The plan as a picture, the figures that runs are compared by for the HParams tab, and the strategy's chart."""
    logger = EventsLogger(plan.folder)
    logger.experiment.add_image("plan", picture(json.dumps(record.plan)), dataformats="HWC")
    # Under names of their own: TensorBoard keeps these as scalars too, at step 0, amid a curve of that name.
    # Those that every run has: the tab shows what all runs share.
    figures = {f"final/{name.replace('/', '_')}": value for name, value in fitted.summary().items()}
    logger.log_hyperparams(_hparams(plan), figures)
    # The validation curve again under the strategy's name, with a layout for the Custom Scalars tab: TensorBoard joins
    # the layouts of all runs, so that each strategy has a chart there with its runs. It asks for every run in every
    # chart, so there is one a strategy.
    strategy = plan.config.strategy.name
    tag = f"strategy/{strategy}/val_acc"
    for point in fitted.curves:
        logger.experiment.add_scalar(tag, point["val/acc"], int(point["epoch"]))
    layout = {"validation accuracy, %": {strategy: ["Multiline", [f"^{re.escape(tag)}$"]]}}
    logger.experiment.add_custom_scalars(layout)
    logger.close()


def _hparams(plan: RunPlan) -> dict[str, str | int]:
    """The axes for TensorBoard's HParams tab, and in a few words whatever else may be swept, under keys that all runs share.
    The tab shows the first five by the alphabet: the axes."""
    config, named = plan.config, dict(plan.axes)
    optim, schedule, host, donor = config.optim, config.schedule, config.host, config.donor
    named["target data"] = _told(config.data)
    named["surgery"] = _told(config.surgery) if donor.is_layer else "-"
    source = plan.donor.data if donor.is_layer else None
    named["trained on"] = "-" if source is None else _told(source)
    named["training"] = f"{optim.name}, lr {optim.lr:g}, {schedule.name}, {schedule.epochs} epochs"
    named["trains what"] = "; ".join(f"{name}: {', '.join(given)}" for name, given in config.strategy.groups.items())
    named["variant of host"] = ", ".join(f"{item}={value}" for item, value in canonical(host).items() if item != "name")
    del named["data"]
    return named


def _told(spec: Any) -> str:
    """The name of a spec, and what of it is not as its kind has it by default: `cifar10, half=A, corrupt.noise=5`."""
    return ", ".join([spec.name, *(part for part in _changed(spec) if not part.startswith("name="))])


def _changed(spec: Any) -> Iterator[str]:
    for item in dataclasses.fields(spec):
        value = getattr(spec, item.name)
        if dataclasses.is_dataclass(value):
            yield from (f"{item.name}.{part}" for part in _changed(value))
        elif value != item.default and (item.default_factory is dataclasses.MISSING or value != item.default_factory()):
            yield f"{item.name}={value}"
