"""Probes: what a network is like between epochs. They look, off the hot path, and move nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layergraft.config.schema import ProbeSpec
from layergraft.metrics.distances import centred_gram, frechet_distance, linear_cka
from layergraft.training.evaluation import BATCH, Batch, Mode, evaluate, evaluating, measuring, record_activations
from layergraft.training.lightning_module import PlannedModule

if TYPE_CHECKING:
    from layergraft.training.fit import EventsLogger

GRID = 8  # features are averaged over a grid of at most so many places a side before they are compared image by image
MAX_FILTERS = 64


@dataclass(frozen=True)
class ProbeTargets:
    """What to look at in a network, by module paths and parameter names; `training` knows no more of it."""

    paths: Sequence[str] = ()  # modules whose output is described
    compared: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Name -> (module whose input, module whose output) are compared with the intact network's."""
    intact: nn.Module | None = None  # the network before surgery, on the CPU
    drifting: Sequence[str] = ()  # parameters whose distance from where they started is told
    gates: Sequence[str] = ()  # parameters that are single numbers
    filters: Sequence[str] = ()  # weights of convolutions that are drawn
    intact_is_trained: bool = True
    """Whether the intact network's predictions mean something, so that what is lost of them does."""


class Probes:
    """Looks at the epochs that `spec` names; `points` has what was seen, plain numbers (None for what is not finite)."""

    def __init__(
        self, spec: ProbeSpec, network: nn.Module, subject: ProbeTargets, images: Batch, val: Any, epochs: int
    ) -> None:
        """`images` are what activations are measured on, `val` the batches that loss and accuracy at step 0 are of; both
        lie on one device."""
        self.spec, self.subject, self.val, self.epochs = spec, subject, val, epochs
        self.x_NCHW, self.y_N = images
        self.points: list[dict[str, Any]] = []
        start = network.state_dict()
        self.start = {name: start[name].detach().clone() for name in subject.drifting}
        self.of_intact: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        self.intact = {"loss": math.nan, "acc": math.nan}
        if subject.intact is not None and spec.epochs:
            intact = subject.intact.to(self.x_NCHW.device)
            self.of_intact = _features(intact, subject.compared, self.x_NCHW)
            self.intact = evaluate(intact, val, val.task)
            subject.intact.cpu()

    def is_due(self, epochs_done: int) -> bool:
        """`epochs_done` is -1 once training has ended."""
        if epochs_done == self.epochs and -1 in self.spec.epochs:
            return False  # the look at the end is this one, after weights have been averaged
        return epochs_done in self.spec.epochs

    def look(self, module: PlannedModule, epochs_done: int) -> None:
        if not self.is_due(epochs_done):
            return
        network, epoch = module.network, len(module.curves) if epochs_done == -1 else epochs_done
        # Before training, graft and intact host are run alike: norms that have no statistics yet take the batch's.
        mode = measuring if epoch == 0 else evaluating
        point: dict[str, Any] = {"epoch": epoch}
        seen = record_activations(network, self.subject.paths, self.x_NCHW, self.y_N, mode, module.task)
        for path, statistics in seen.activations.items():
            values = {"mean": statistics.mean, "variance": statistics.deviation**2, "dead": statistics.share_dead}
            point |= {f"activation/{path}/{name}": value for name, value in values.items()}
        features = _features(network, self.subject.compared if self.of_intact else {}, self.x_NCHW, mode)
        for place, sides in features.items():
            for side, (pooled, gram) in sides.items():
                intact_pooled, intact_gram = self.of_intact[place][side]
                point[f"frechet/{place}/{side}"] = frechet_distance(pooled, intact_pooled)
                point[f"cka/{place}/{side}"] = linear_cka(gram, intact_gram)
        if self.start:
            point["drift"] = _drift(network, self.start)
        point |= {f"gradient/{group}": norm for group, norm in self._relative_gradients(module, mode).items()}
        point |= {f"gate/{name}": network.get_parameter(name).item() for name in self.subject.gates}
        if epoch == 0:
            figures = evaluate(network, self.val, self.val.task)
            point |= {name: figures[name] for name in ("loss", "acc")}
            point |= {f"intact/{name}": self.intact[name] for name in ("loss", "acc")}
        self.points.append({name: value if math.isfinite(value) else None for name, value in point.items()})
        filters = {name: network.get_parameter(name).detach() for name in self.subject.filters}
        self._log(module, self.points[-1], filters)

    def log_again(self, module: PlannedModule) -> None:
        """Write what a resumed run had seen from the epoch on that its checkpoint is of: TensorBoard drops it there."""
        for point in self.points:
            if point["epoch"] >= len(module.curves):
                filters = {name: self.start[name] for name in self.subject.filters} if point["epoch"] == 0 else {}
                self._log(module, point, filters)

    def _log(self, module: PlannedModule, point: Mapping[str, Any], filters: Mapping[str, Tensor]) -> None:
        logger = cast("EventsLogger | None", module.logger)  # `fit` gives no other
        if logger is None:
            return
        scalars = {f"probe/{name}": value for name, value in point.items() if name != "epoch" and value is not None}
        logger.log_metrics(scalars, step=point["epoch"])
        for name, weight in filters.items():
            logger.experiment.add_image(f"filters/{name}", drawn(weight), point["epoch"])

    def _relative_gradients(self, module: PlannedModule, mode: Mode) -> dict[str, float]:
        """Group that trains -> ||g|| / ||theta|| of the mean loss on the probe's images, over all of its tensors."""
        phase = module.plan.phase(max(len(module.curves) - 1, 0), module.curves)
        groups = {g: [p for p in ps if p.requires_grad] for g, ps in module.parameters_of.items() if phase.trains(g)}
        groups = {group: parameters for group, parameters in groups.items() if parameters}
        every = [parameter for parameters in groups.values() for parameter in parameters]
        # In small parts, for no more memory than a step takes; a batch norm that measures does so on as many as everywhere.
        size = BATCH if mode is measuring else BATCH // 4
        total: list[Tensor] = []
        with mode(module.network), torch.enable_grad():
            for x, y in zip(self.x_NCHW.split(size), self.y_N.split(size), strict=True):
                loss = module.task.loss(module.network(x), y, reduction="sum") / len(self.y_N)
                grads = torch.autograd.grad(loss, every, allow_unused=True, materialize_grads=True)
                if total:
                    torch._foreach_add_(total, grads)
                else:
                    total = list(grads)
        of = dict(zip(map(id, every), total, strict=True))
        return {
            group: _norm([of[id(p)] for p in parameters]) / max(_norm(parameters), 1e-30)
            for group, parameters in groups.items()
        }

    def summary(self, curves: Sequence[Mapping[str, float]], steps_per_epoch: int) -> dict[str, float | None]:
        """The figures of a run that come of looking: the shock of surgery at step 0, when it was made good, how fast
        accuracies were reached (steps at the end of the first epoch that had them; None: never), how far the donor went.
        """
        found: dict[str, float | None] = {}
        ends = [((point["epoch"] + 1) * steps_per_epoch, point) for point in curves]
        first = next((point for point in self.points if point["epoch"] == 0), None)
        if first is not None:
            found |= {f"step0/{name}": first[name] for name in ("acc", "loss") if first[name] is not None}
        known = first is not None and first["intact/loss"] is not None and first["loss"] is not None
        if first is not None and known and self.subject.intact_is_trained:
            shock = found["shock/loss"] = first["loss"] - first["intact/loss"]
            found["shock/acc"] = first["acc"] - first["intact/acc"]
            recovered = [steps for steps, point in ends if point["val/loss"] <= first["intact/loss"]]
            found["steps_to/recover"] = 0 if shock <= 0 else next(iter(recovered), None)
        for threshold in self.spec.thresholds:
            found[f"steps_to/{threshold:g}"] = next((steps for steps, p in ends if p["val/acc"] >= threshold), None)
        if self.points and self.points[-1]["epoch"] == len(curves) and "drift" in self.points[-1]:
            found["drift"] = self.points[-1]["drift"]
        return found


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(tensor.detach().double().square().sum().item() for tensor in tensors))


def _drift(network: nn.Module, start: Mapping[str, Tensor]) -> float:
    """||w - w0|| / ||w0|| over all of `start`; 0 / 0 is 0."""
    state = network.state_dict()
    moved = _norm([state[name] - tensor.to(state[name].device) for name, tensor in start.items()])
    return moved / _norm(list(start.values())) if moved else 0.0


@torch.no_grad()
def _features(
    network: nn.Module, places: Mapping[str, tuple[str, str]], x_NCHW: Tensor, mode: Mode = measuring
) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Place -> side (in, out) -> (features averaged over an image, (N, C); centred Gram matrix of the features, (N, N))."""
    kept: dict[tuple[str, str], list[Tensor]] = defaultdict(list)

    def keep(key: tuple[str, str], module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        x = args[0] if output is None else output
        kept[key].append(F.adaptive_avg_pool2d(x.float(), (min(GRID, x.shape[2]), min(GRID, x.shape[3]))))

    with ExitStack() as hooks:
        for name, (before, after) in places.items():
            hooks.enter_context(network.get_submodule(before).register_forward_pre_hook(partial(keep, (name, "in"))))
            hooks.enter_context(network.get_submodule(after).register_forward_hook(partial(keep, (name, "out"))))
        with mode(network):
            for x in x_NCHW.split(BATCH) if places else ():
                network(x)
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {name: {} for name in places}
    for (name, side), parts in kept.items():
        x = torch.cat(parts)
        found[name][side] = (x.mean((2, 3)), centred_gram(x.flatten(1)))
    return found


def drawn(w_OIHW: Tensor) -> Tensor:
    """Filters as a picture, (3, H, W) in [0, 1]: mid-grey is 0, the largest weight white or black.

    Filters on three channels are in colour, others show their first input channel; 1 x 1 convolutions are drawn as the
    matrix that they are.
    """
    from torchvision.utils import make_grid

    w = w_OIHW.float().cpu()
    if w.shape[2:] == (1, 1):
        images = w[:, :, 0, 0][None, None]
    else:
        images = w[:MAX_FILTERS] if w.shape[1] == 3 else w[:MAX_FILTERS, :1]
    images = 0.5 + 0.5 * images / images.abs().amax().clamp_min(1e-30)
    images = F.interpolate(images, scale_factor=max(1, round(24 / max(images.shape[2:]))), mode="nearest")
    return cast(Tensor, make_grid(images, nrow=8, padding=2, pad_value=1.0))
