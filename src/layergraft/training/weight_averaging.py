"""Averages of the weights over training: exponential, by step, or stochastic weight averaging, by epoch.

Sources: Polyak & Juditsky 1992; Izmailov et al., Averaging Weights Leads to Wider Optima, 2018. torch's AveragedModel
is not used because it rounds integer buffers (the count of a frozen batch norm would change).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from layergraft.config.training_schema import RegularizerSpec
from layergraft.training.evaluation import reestimate
from layergraft.training.lightning_module import PlannedModule


class Averages(pl.Callback):
    """Keeps the average of a network's state, buffers included, and puts it in the network's place.

    What does not move is averaged to what it is, bit for bit; the average of a group that was frozen again is of what it
    was while it trained, too. With `ema` the average is what is validated as well. Its decay climbs to `ema` from a tenth
    as (1 + steps) / (10 + steps), or it would be of the initial weights in a short training.
    """

    def __init__(self, network: nn.Module, spec: RegularizerSpec, epochs: int) -> None:
        self.network, self.ema = network, spec.ema
        self.first_epoch = None if spec.swa is None else int(spec.swa * epochs)
        self.num_averaged = 0
        self.average: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in network.state_dict().items()
        }
        self._live: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"num_averaged": self.num_averaged, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_averaged = state_dict["num_averaged"]
        for name, tensor in state_dict["average"].items():
            self.average[name].copy_(tensor)

    def on_train_start(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        now = self.network.state_dict()
        self.average = {name: tensor.to(now[name].device) for name, tensor in self.average.items()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: PlannedModule, *_: Any) -> None:
        if self.ema is not None and pl_module.has_stepped:
            self._towards_now(1 - min(self.ema, (1 + self.num_averaged) / (10 + self.num_averaged)))
            self.num_averaged += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        if self.first_epoch is not None and trainer.current_epoch >= self.first_epoch:
            self.num_averaged += 1
            self._towards_now(1 / self.num_averaged)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        if self.ema is not None:
            self._live = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
            self._put(self.average)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: PlannedModule) -> None:
        if self._live is not None:
            self._put(self._live)
            self._live = None

    def finish(self, module: PlannedModule, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Leave the average in the network. With `swa`, the batch norms that moved are measured on `batches`: their
        statistics are of the weights that each epoch ended with, not of the mean of those."""
        if self.first_epoch is not None and not self.num_averaged:
            return  # training was stopped before there was anything to average
        self._put(self.average)
        if self.first_epoch is None:
            return
        reestimate(self.network, module.norms_that_moved(self.first_epoch), (x_NCHW for x_NCHW, _ in batches))

    @torch.no_grad()
    def _towards_now(self, weight: float) -> None:
        now = self.network.state_dict()
        floats = [name for name, tensor in now.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in floats], [now[name] for name in floats], weight)
        for name, tensor in now.items():
            if not tensor.is_floating_point():
                self.average[name].copy_(tensor)

    @torch.no_grad()
    def _put(self, state: dict[str, Tensor]) -> None:
        now = self.network.state_dict()
        torch._foreach_copy_(list(now.values()), [state[name] for name in now])
