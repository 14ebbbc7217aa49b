"""The LightningModule: loss, accuracy, optimizer groups and learning rates, all from the plan."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from layergraft.config.training_schema import OptimSpec, RegularizerSpec, ScheduleSpec
from layergraft.errors import UserError
from layergraft.metrics.tasks import Task
from layergraft.strategies.phases import Phase, TrainingPlan
from layergraft.training import gradients, optimizers
from layergraft.training.evaluation import Evaluation


class Diverged(Exception):
    """The loss is no longer a finite number."""


class PlannedModule(pl.LightningModule):
    """A classifier (`x_NCHW` to logits) that learns as its plan says.

    Every parameter is in the optimizer from step 0, in groups named as in the plan; the learning rate of each is set
    before each step, a function of the step and of the curves so far. Losses are kept on the device and read once an
    epoch, so that no step waits for the device. What a checkpoint needs beside weights and optimizer is saved with it:
    the curves, the losses of the epoch so far, the learning rates by tensor, the state of torch's generator.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: TrainingPlan,
        optim: OptimSpec,
        schedule: ScheduleSpec,
        regularizer: RegularizerSpec,
        steps_per_epoch: int,
        compile: bool = False,
        task: Task = Task.multi_class,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network, self.plan, self.optim, self.schedule = network, plan, optim, schedule
        self.regularizer, self.steps_per_epoch, self.compiles = regularizer, steps_per_epoch, compile
        self.task = task
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)  # it goes where the network goes
        self.parameters_of = {group: [*map(network.get_parameter, names)] for group, names in plan.groups.items()}
        self.norms_of: dict[str | None, list[nn.Module]] = {}
        for path, group in plan.norms.items():
            self.norms_of.setdefault(group, []).append(network.get_submodule(path))
        anchored = [(group, p) for group in plan.l2_sp for p in self.parameters_of[group] if optimizers.is_anchored(p)]
        self.anchors = [(plan.l2_sp[group], p, p.detach().clone()) for group, p in anchored]
        self.phase: Phase | None = None
        self.curves: list[dict[str, float]] = []
        self.by_tensor: dict[str, float] = {}
        """Parameter -> share of its group's learning rate; empty: all of it."""
        self.behind_prefix: Callable[[Tensor], Tensor] | None = None
        """What takes what the frozen prefix gives, where the batches are of that (`training.prefix`)."""
        self._losses: list[Tensor] = []
        self._judged = Evaluation(task)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning sets it 45 times a step, and nn.Module looks up each at length
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # Phases

    def apply_phase(self, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        """Make the network train what `phase` trains and hold still what it freezes, statistics included.

        Idempotent. A frozen parameter loses its gradient (the optimizer would go on moving it by weight decay and
        momentum while a stale one is there) and its state in the optimizer, so that it starts anew if it thaws.
        """
        changed = phase != self.phase
        self.phase = phase
        for group in optimizer.param_groups:
            trains = phase.trains(group["group"])
            for parameter in group["params"]:
                parameter.requires_grad_(trains)
                if not trains:
                    parameter.grad = None
                    optimizer.state.pop(parameter, None)
                elif self._starts_with_state and parameter not in optimizer.state:
                    optimizer.state[parameter] = optimizers.initial_state(optimizer, group, parameter)
        self.train(self.training)
        if self.compiles and changed:
            torch.compiler.reset()  # a graph of the phase before may be taken for this one's (pytorch issue 139476)
            self.network.compile()

    def train(self, mode: bool = True) -> PlannedModule:
        super().train(mode)
        if mode and self.phase is not None:
            for group, norms in self.norms_of.items():
                if group not in self.phase.batch_norm_statistics:
                    for norm in norms:
                        norm.eval()
        return self

    def norms_that_moved(self, first_epoch: int) -> list[nn.Module]:
        """Norm layers whose statistics moved in an epoch that is over, from `first_epoch` on."""
        phases = [self.plan.phase(epoch, self.curves) for epoch in range(first_epoch, len(self.curves))]
        moved = {group for phase in phases for group in phase.batch_norm_statistics}
        return [norm for group, norms in self.norms_of.items() if group in moved for norm in norms]

    # Steps

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = optimizers.make(self.network, self.plan, self.optim)
        self._starts_with_state = bool(optimizer.state)
        return optimizer

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.network(x_NCHW) if self.behind_prefix is None else self.behind_prefix(x_NCHW)

    def rates(self, step: int) -> dict[str, float]:
        """Group -> learning rate at `step`."""
        shares = self.plan.rates(self.schedule, step, self.steps_per_epoch, self.curves)
        return {group: self.optim.lr * share for group, share in shares.items()}

    def on_train_epoch_start(self) -> None:
        if self.plan.tensor_lr == "none":
            return
        assert self.phase is not None  # it is applied before an epoch starts
        names = [name for group, names in self.plan.groups.items() if self.phase.trains(group) for name in names]
        training = {name: self.network.get_parameter(name) for name in names}
        train: Any = self.trainer.train_dataloader
        batches = itertools.islice(train.of_epoch(self.current_epoch), gradients.NUM_BATCHES)
        with self.trainer.precision_plugin.forward_context():
            grads = gradients.measured(self.network, batches, training, self.task, self.class_weights)
        self.by_tensor = gradients.rgn_weights(grads, training)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rates = self.rates(self.current_epoch * self.steps_per_epoch + batch_idx // self.optim.accumulate)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rates[group["group"]]
            if self.by_tensor:
                group["lr"] *= self.by_tensor.get(group["name"], 1.0)
        self.has_stepped = (batch_idx + 1) % self.optim.accumulate == 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x_NCHW, y_N = batch
        smoothing, weights = self.regularizer.label_smoothing, self.class_weights
        loss = self.task.loss(self.forward(x_NCHW), y_N, label_smoothing=smoothing, class_weights=weights)
        self._losses.append(loss.detach())
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Lightning's own refuses fused optimizers in mixed precision, where a loss may be scaled; bf16 is not.
        if gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """L2-SP's gradient, alpha (w - w0). Source: Li, Grandvalet & Davoine 2018, equation 2."""
        for index, (alpha, parameter, start) in enumerate(self.anchors):
            if start.device != parameter.device:  # where Lightning has taken the network since
                start = start.to(parameter.device)
                self.anchors[index] = (alpha, parameter, start)
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=alpha)

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        self._judged = Evaluation(self.task)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x_NCHW, y_N = batch
        self._judged.add(self.forward(x_NCHW).float(), y_N)

    def evaluated(self) -> dict[str, float]:
        """The metrics of the evaluation that has just ended, which each process does whole, on all images of the split."""
        return self._judged.metrics()

    def logits(self) -> Tensor:
        """Those of that evaluation, (N, C) float32 on the CPU, in the order of the split."""
        return self._judged.whole()[0]

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def mean_loss(self) -> float:
        """Of the training batches of this epoch so far, over all processes."""
        return self.trainer.strategy.reduce(self._epoch_losses().double().mean(), reduce_op="mean").item()

    def _epoch_losses(self) -> Tensor:
        return torch.stack([loss.to(self.device) for loss in self._losses])

    def on_validation_epoch_end(self) -> None:
        if self.trainer.state.fn != "fit":
            return  # the last look at an average of weights is no epoch of its own
        epoch, train_loss = self.current_epoch, self.mean_loss()
        self._losses.clear()
        val = {f"val/{name}": value for name, value in self.evaluated().items()}
        rates = {f"lr/{group}": rate for group, rate in self.rates(epoch * self.steps_per_epoch).items()}
        shares = {f"share/{name}": share for name, share in self.by_tensor.items()}  # of its group's rate
        point = {"train/loss": train_loss, **val, **rates, **shares}
        self.curves.append({"epoch": epoch, **point})
        if self.logger is not None:
            self.logger.log_metrics(point, step=epoch)
        for name, loss in (("training", train_loss), ("validation", val["val/loss"])):
            if not math.isfinite(loss):
                raise Diverged(f"the {name} loss is {loss} in epoch {epoch}")

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["layergraft"] = {
            "groups": [group["name"] for group in self.trainer.optimizers[0].param_groups],
            "curves": self.curves,
            "losses": self._epoch_losses_of_ranks() if self._losses else None,
            "by_tensor": self.by_tensor,
            "generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def _epoch_losses_of_ranks(self) -> Tensor:
        """(ranks, batches of the epoch so far); called by all of them."""
        losses = self._epoch_losses()
        return self.trainer.strategy.all_gather(losses) if self.trainer.world_size > 1 else losses[None]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = checkpoint["layergraft"]
        names = [group["name"] for group in optimizers.groups_of(self.network, self.plan, self.optim)]
        if own["groups"] != names:  # else a group of the same size in another's place would be loaded silently
            raise UserError(f"the checkpoint's parameter groups are {own['groups']}, this run's are {names}")
        self.curves, self.by_tensor = list(own["curves"]), dict(own["by_tensor"])
        self._losses = [] if own["losses"] is None else list(own["losses"][self.trainer.global_rank])
        torch.set_rng_state(own["generator"])
        if own["cuda_generator"] is not None:
            torch.cuda.set_rng_state(own["cuda_generator"], torch.cuda.current_device())
