"""How a network is trained, in dataclasses: strategy, optimizer, schedule, regularizers. What they mean is in
`layergraft.strategies.phases`, `layergraft.strategies.lr_schedules` and `layergraft.training`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from layergraft.config.metric_registry import watchable
from layergraft.config.registry import bounded, one_of
from layergraft.errors import require, unknown

SCHEDULES = ("constant", "step", "cosine", "one_cycle")


@dataclass
class PlateauSpec:
    """A measure that has stopped getting better: none better than its best by `min_delta` for `patience` epochs."""

    metric: str = one_of("val/loss", watchable)
    """train/loss, or any metric of the data's task on the validation split: val/loss, val/acc, val/balanced_acc, ..."""
    patience: int | None = bounded(None, "[1, inf)")
    """Epochs; null: it is not watched."""
    min_delta: float = bounded(0.0, "[0, inf)")
    """By how much it must be better to count."""

    def check(self, at: str) -> None:
        unwatched = (
            f"{at}.metric is {self.metric}, but {at}.patience is null, so nothing is watched; give {at}.patience=N"
        )
        require(self.patience is not None or self.metric == "val/loss", unwatched)

    def require_task(self, at: str, task: str) -> None:
        """Raise UserError where it is watched and data of this task lack the metric."""
        if self.patience is not None and self.metric not in watchable(task):
            raise unknown(f"{at}.metric of {task} data:", self.metric, watchable(task))


@dataclass
class OptimSpec:
    """The optimizer and the size of its batches."""

    name: str = "adam"
    """Any class of torch.optim, in any case: sgd, adam, adamw, rmsprop, ...; not LBFGS, SparseAdam, Muon."""
    lr: float = bounded(1e-3, "(0, inf)", "a learning rate must be above 0 (a strategy freezes what shall not learn)")
    """The learning rate where a strategy's multiplier is 1."""
    momentum: float = bounded(0.9, "[0, 1)")
    """Of sgd alone."""
    weight_decay: float = bounded(0.0, "[0, inf)")
    """As the optimizer has it: adamw's is decoupled, sgd's and adam's is added to the gradient."""
    decay_1d: bool = True
    """Whether tensors of one dimension (biases, norm parameters) and gates have weight decay too."""
    options: dict[str, Any] = field(default_factory=dict)
    """What else the class takes: {betas: [0.9, 0.95]}, {nesterov: true}."""
    batch_size: int = bounded(32, "[2, inf)", "it must be 2 or more, for batch norm")
    """Images; the last, smaller batch of an epoch is left out."""
    accumulate: int = bounded(1, "[1, inf)")
    """Batches whose mean gradient makes one step."""
    clip_norm: float | None = bounded(None, "(0, inf)", "it must be above 0, or null for no clipping")
    """The norm to which the gradient of all that trains is cut; null: it is not."""


@dataclass
class ScheduleSpec:
    """How long training lasts and how the learning rate changes over it, step by step."""

    name: str = "constant"
    """constant, step, cosine (to 0 at the end) or one_cycle (up, then down to nearly 0)."""
    epochs: int = bounded(30, "[1, inf)")
    """Over the training split."""
    warmup: float = 0.0
    """Epochs, or a part of one, over which the rate first climbs in a line; the schedule itself comes after."""
    step_epochs: int | None = None
    """Of step alone: the rate is multiplied by `gamma` every so many epochs."""
    gamma: float | None = None
    """Of step alone."""
    pct_start: float | None = None
    """Of one_cycle alone: the share of it in which the rate climbs."""
    early_stopping: PlateauSpec = field(default_factory=PlateauSpec)
    """Training ends where this plateaus; the weights are those of the last epoch."""

    def check(self, at: str) -> None:
        if self.name not in SCHEDULES:
            raise unknown(f"schedule in {at}.name:", self.name, SCHEDULES)
        require(
            0 <= self.warmup < self.epochs,
            f"{at}.warmup is {self.warmup:g} epochs; it must be 0 or more and less than {at}.epochs={self.epochs}",
        )
        for key, owner in {"step_epochs": "step", "gamma": "step", "pct_start": "one_cycle"}.items():
            value, is_own = getattr(self, key), self.name == owner
            require(
                (value is not None) == is_own,
                f"{at}.{key} is {value}, but {at}.name={self.name}; {'it is needed' if is_own else f'only {owner} has it'}",
            )
        require(
            self.step_epochs is None or self.step_epochs > 0,
            f"{at}.step_epochs is {self.step_epochs}; it must be 1 or more",
        )
        require(self.gamma is None or 0 < self.gamma <= 1, f"{at}.gamma is {self.gamma}; it must be in (0, 1]")
        require(self.pct_start is None or 0 < self.pct_start < 1, f"{at}.pct_start is {self.pct_start}; it must be in (0, 1)")  # fmt: skip


@dataclass
class RegularizerSpec:
    """What keeps training from overfitting, besides weight decay; each off by default."""

    label_smoothing: float = bounded(0.0, "[0, 1)")
    """Share of a label that is spread over all classes."""
    mixup: float = bounded(0.0, "[0, inf)")
    """alpha of the Beta(alpha, alpha) that two images of a batch are mixed by; 0: none are mixed."""
    ema: float | None = bounded(None, "(0, 1)", "it must be in (0, 1), such as 0.999")
    """Decay by step of an exponential moving average of the weights, which is what is validated, tested and kept."""
    swa: float | None = bounded(None, "[0, 1)", "it must be in [0, 1), such as 0.75")
    """Share of training after which the weights at each epoch's end are averaged; their mean, its batch norms measured
    anew on the training images, is what is tested and kept (stochastic weight averaging)."""

    def check(self, at: str) -> None:
        require(self.ema is None or self.swa is None, f"{at}.ema and {at}.swa are both set; take one average")


@dataclass
class SplitSpec:
    """A group that is taken apart by depth: the stem, each stage or block, the head, every one a group GROUP.PART."""

    by: str = one_of("stage", ("stage", "block"))
    """stage or block."""
    decay: float = bounded(1.0, "(0, 1]")
    """The learning rate of a part is this times that of the part above it, the head's being the group's own."""


@dataclass
class PhaseSpec:
    """From `epoch` on, until the next phase: each group of the strategy either trains or is frozen."""

    epoch: int = MISSING
    """With a plateau, when it starts at the latest."""
    train: dict[str, float] = field(default_factory=dict)
    """Group -> multiplier of optim.lr, above 0."""
    freeze: list[str] = field(default_factory=list)
    """Groups that do not move."""
    plateau: PlateauSpec = field(default_factory=PlateauSpec)
    """Of validation, in the phase before, that starts this one sooner."""
    warmup: dict[str, float] = field(default_factory=dict)
    """Group -> epochs from the start of the phase over which its rate climbs in a line."""
    gradual_unfreeze: dict[str, int] = field(default_factory=dict)
    """Group taken apart by depth -> epochs over which its parts begin to train one after another, the head first."""
    batch_norm_statistics: list[str] | None = None
    """Groups whose norms take the batch's statistics and move their own; null: those that train."""


@dataclass
class StrategySpec:
    """What learns, when and how fast (see `layergraft.strategies.phases`)."""

    name: str = MISSING
    """Its name in keys and reports."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Ordered: group -> patterns; a parameter belongs to the first group that matches it."""
    split: dict[str, SplitSpec] = field(default_factory=dict)
    """Groups that are taken apart by depth."""
    weight_decay: dict[str, float] = bounded(dict, "[0, inf)", "it must be 0 or more, and finite")
    """Group -> weight decay in place of optim.weight_decay."""
    l2_sp: dict[str, float] = bounded(dict, "[0, inf)", "it must be 0 or more, and finite")
    """Group -> alpha of L2-SP: its weights are drawn to where they started, not to 0, and have no weight decay."""
    tensor_lr: str = one_of("none", ("none", "rgn"))
    """none, or rgn: learning rates by tensor, from its gradients over the first batches of each epoch."""
    phases: dict[str, PhaseSpec] = field(default_factory=dict)
    """Ordered by epoch; the first starts at epoch 0."""


# `${share:0.5,${schedule.epochs}}`: a strategy's phase that starts halfway, however long the run.
OmegaConf.register_new_resolver("share", lambda part, whole: int(part * whole), replace=True)
