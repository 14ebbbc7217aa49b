"""The LightningModule: loss, accuracy, optimizer groups and learning rates, all from the plan."""

from __future__ import annotations

import math

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layergraft.errors import UserError, unknown
from layergraft.specs import OptimSpec, ScheduleSpec
from layergraft.strategies import Phase, Plan

NORMS = (nn.modules.batchnorm._NormBase,)  # what has running statistics: batch and instance norm

OPTIMIZERS = {
    "adam": lambda groups, spec: torch.optim.Adam(groups, lr=spec.lr, weight_decay=spec.weight_decay, fused=True),
    "adamw": lambda groups, spec: torch.optim.AdamW(groups, lr=spec.lr, weight_decay=spec.weight_decay, fused=True),
    "sgd": lambda groups, spec: torch.optim.SGD(
        groups, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True
    ),
}

# How much of the learning rate is left at `epoch` of `epochs`.
SCHEDULES = {
    "constant": lambda epoch, epochs: 1.0,
    "cosine": lambda epoch, epochs: (1 + math.cos(math.pi * epoch / epochs)) / 2,
}


class Diverged(Exception):
    """The loss is no longer a finite number."""


def check(optim: OptimSpec, schedule: ScheduleSpec) -> None:
    """Raise UserError for an optimizer or schedule that does not exist."""
    if optim.name not in OPTIMIZERS:
        raise unknown("optimizer in optim.name:", optim.name, OPTIMIZERS)
    if schedule.name not in SCHEDULES:
        raise unknown("schedule in schedule.name:", schedule.name, SCHEDULES)


class PlannedModule(pl.LightningModule):
    """A classifier (`x_NCHW` to logits) that learns as its plan says.

    Every parameter is in the optimizer from step 0, in groups named as in the plan; one multiplier a group and epoch
    comes from plan and schedule together. Losses are kept on the device and read once an epoch, so that no step
    waits for the device.
    """

    def __init__(self, network: nn.Module, plan: Plan, optim: OptimSpec, schedule: ScheduleSpec) -> None:
        super().__init__()
        check(optim, schedule)
        self.network, self.plan, self.optim, self.schedule = network, plan, optim, schedule
        self.parameters_of = {
            group: [network.get_parameter(name) for name in names] for group, names in plan.groups.items()
        }
        self.norms_of: dict[str, list[nn.Module]] = {group: [] for group in plan.groups}
        for path, group in plan.norms.items():
            self.norms_of[group].append(network.get_submodule(path))
        self.phase: Phase | None = None
        self.curves: list[dict[str, float]] = []
        self._train_losses: list[Tensor] = []
        self._counts: list[Tensor] = []

    def apply_phase(self, phase: Phase) -> None:
        """Make the network train what `phase` trains and hold still what it freezes, statistics included.

        Idempotent. A frozen parameter's gradient is dropped: the optimizer would go on moving it by weight decay and
        momentum while a stale one is there.
        """
        self.phase = phase
        for group, parameters in self.parameters_of.items():
            for parameter in parameters:
                parameter.requires_grad_(phase.trains(group))
                if not phase.trains(group):
                    parameter.grad = None
        self.train(self.training)

    def train(self, mode: bool = True) -> PlannedModule:
        super().train(mode)
        if mode and self.phase is not None:
            for group, norms in self.norms_of.items():
                if not self.phase.trains(group):
                    for norm in norms:
                        norm.eval()
        return self

    def multiplier(self, group: str, epoch: int) -> float:
        """What `optim.lr` is multiplied by for `group` in `epoch`."""
        return self.plan.phase(epoch).lr[group] * SCHEDULES[self.schedule.name](epoch, self.schedule.epochs)

    def configure_optimizers(self):
        groups = [{"params": parameters, "name": group} for group, parameters in self.parameters_of.items()]
        optimizer = OPTIMIZERS[self.optim.name](groups, self.optim)
        lambdas = [lambda epoch, group=group: self.multiplier(group, epoch) for group in self.parameters_of]
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambdas)]  # stepped at each epoch's end

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.network(x_NCHW)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x_NCHW, y_N = batch
        loss = F.cross_entropy(self.network(x_NCHW), y_N)
        self._train_losses.append(loss.detach())
        return loss

    def on_train_epoch_start(self) -> None:
        # Read here: by the time of validation Lightning has stepped the schedule to the next epoch.
        self._rates = {f"lr/{group['name']}": group["lr"] for group in self.optimizers().param_groups}

    def on_validation_epoch_start(self) -> None:
        self._counts.clear()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x_NCHW, y_N = batch
        logits = self.network(x_NCHW).float()
        correct = (logits.argmax(1) == y_N).sum()
        total = torch.full_like(correct, len(y_N))
        self._counts.append(torch.stack([F.cross_entropy(logits, y_N, reduction="sum").double(), correct, total]))

    def evaluated(self) -> tuple[float, float]:
        """Mean loss and accuracy in percent of the evaluation that has just ended."""
        loss, correct, total = torch.stack(self._counts).sum(0).tolist()
        return loss / total, 100 * correct / total

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        train_loss = torch.stack(self._train_losses).double().mean().item()
        self._train_losses.clear()
        val_loss, val_acc = self.evaluated()
        point = {"train/loss": train_loss, "val/loss": val_loss, "val/acc": val_acc, **self._rates}
        self.curves.append({"epoch": self.current_epoch, **point})
        if self.logger is not None:
            self.logger.log_metrics(point, step=self.current_epoch)
        for name, loss in (("training", train_loss), ("validation", val_loss)):
            if not math.isfinite(loss):
                raise Diverged(f"the {name} loss is {loss} in epoch {self.current_epoch}")


def norm_paths(network: nn.Module) -> list[str]:
    """Module paths of the layers of `network` that keep running statistics or normalise by the batch."""
    return [path for path, module in network.named_modules() if isinstance(module, NORMS)]


def require_device(device: str) -> None:
    """Raise UserError where `device` is CUDA and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("exec asks for CUDA, but torch sees no CUDA device here; exec=auto or exec=cpu does without")
