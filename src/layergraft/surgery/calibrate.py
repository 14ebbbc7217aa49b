"""Calibration: a graft is adjusted to the host's activations before any training, without gradients.

Sources: least squares for 1 x 1 adapters, Csiszarik et al. 2021; re-estimated batch norm, Jordan et al. 2022 (REPAIR);
LSUV, Mishkin & Matas 2016 (tolerance 0.1, at most 10 steps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from layergraft.hosts.norms import batch_norms
from layergraft.surgery.grafting import Graft, Grafted
from layergraft.surgery.operation import Operation
from layergraft.training.evaluation import BATCH, measuring, reestimate

PIECE = 16  # images at a time where activations are widened to float64
RANK_TOLERANCE = 1e-10  # directions with less than this share of the power are rounding noise of float32 activations


def calibrated(grafted: Grafted, images_NCHW: Tensor, operation: Operation) -> Grafted:
    """Return `grafted` with its network, which is changed in place, adjusted to what host and network do with these images.

    Networks and images lie on one device. Both are run as `measuring` has it. Grafts are calibrated in the order in which
    they act, each on what the ones before it now give.
    """
    if operation.calibrate == "none" and not operation.solves_adapters:
        return grafted
    # Batches of nearly one size: a small rest would count as much as a full batch in the statistics of batch norm.
    batches = images_NCHW.tensor_split(-(-len(images_NCHW) // BATCH))
    order = {path: index for index, (path, _) in enumerate(grafted.host.named_modules())}
    grafts = sorted(grafted.grafts, key=lambda graft: order[graft.site.path])
    anew = (
        operation.calibrate == "batch_norm"
    )  # the statistics will be the batches', so adapters are solved for with those
    with measuring(grafted.host), measuring(grafted.network, anew=anew), torch.no_grad():
        for graft in grafts:
            if operation.calibrate == "lsuv":
                for path in graft.donor_paths.values():
                    unit_variance(grafted.network, grafted.network.get_submodule(path), batches)
            if operation.solves_adapters:
                solve_adapters(grafted, graft, batches)
            if operation.calibrate == "moments":
                match_moments(grafted, graft, batches)
    if anew:
        with measuring(grafted.network):
            reestimate(grafted.network, batch_norms(grafted.network), batches)
    return grafted.with_changes()


class _Found(Exception):
    """Raised where the module that was looked for has run: the rest of the forward is not needed."""


def passing(network: nn.Module, path: str, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """What goes into the module at `path` and what comes out of it, batch by batch; the forward ends there."""
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        seen.append((args[0].clone(), output.clone()))  # an in-place ReLU may come next
        raise _Found

    for batch in batches:
        with network.get_submodule(path).register_forward_hook(hook), suppress(_Found):
            network(batch)
        yield seen.pop()


def _pieces(x_NCHW: Tensor) -> Iterator[Tensor]:
    """(channels, pixels) in float64, `PIECE` images at a time."""
    for piece in x_NCHW.split(PIECE):
        yield piece.double().transpose(0, 1).flatten(1)


@dataclass
class _Moments:
    """Mean and variance by channel, summed up piece by piece."""

    count: int = 0
    total: Any = 0.0
    squares: Any = 0.0

    def add(self, x_NCHW: Tensor) -> None:
        for x_CP in _pieces(x_NCHW):
            self.count += x_CP.shape[1]
            self.total += x_CP.sum(1)
            self.squares += x_CP.square().sum(1)

    @property
    def mean(self) -> Any:
        return self.total / self.count

    @property
    def variance(self) -> Any:
        return (self.squares / self.count - self.mean.square()).clamp_min(0)


def targets(host: nn.Module, graft: Graft, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(what the chain is given in the intact host, what it should give): a replaced layer's output, or for a link that
    is inserted what it was given, since the intact host passes that on as it is."""
    seen, placed = passing(host, graft.site.path, batches), graft.placed
    if placed.stands_for == "input":
        yield from ((given, given) for given, _ in seen)
    elif placed.stands_for == "output":
        yield from ((made, made) for _, made in seen)
    else:
        for (given, _), (_, made) in zip(seen, passing(host, placed.replaced[-1], batches), strict=True):
            yield given, made


def match_moments(grafted: Grafted, graft: Graft, batches: Sequence[Tensor]) -> None:
    """Set the affine adapter so that the chain's output has the mean and deviation, by channel, of the intact host's.

    A branch beside the host's layer is so given that layer's moments, before its gate.
    """
    wanted, has = _Moments(), _Moments()
    path = f"{graft.placed.chain}.affine"
    affine = _conv(grafted.network, path)
    for _, target in targets(grafted.host, graft, batches):
        wanted.add(target)
    for given, _ in passing(grafted.network, path, batches):
        has.add(given)
    still = has.variance <= 1e-12 * has.mean.square().clamp_min(1e-12)  # a constant channel has no deviation to match
    scale = torch.where(still, 1.0, (wanted.variance / has.variance.clamp_min(1e-30)).sqrt())
    affine.weight.copy_(scale.view(-1, 1, 1, 1))
    assert affine.bias is not None  # it scales and shifts
    affine.bias.copy_(wanted.mean - scale * has.mean)


def unit_variance(network: nn.Module, donor: nn.Module, batches: Sequence[Tensor]) -> None:
    """LSUV over the donor's convolutions, in the order in which they act: weights scaled until what they give, less a
    bias, has variance 1."""
    named = {module: path for path, module in network.named_modules()}
    for conv in (module for module in donor.modules() if isinstance(module, nn.Conv2d)):
        for _ in range(10):
            seen = _Moments()
            for _, output in passing(network, named[conv], batches):
                seen.add(output if conv.bias is None else output - conv.bias[:, None, None])  # what the weights do
            # Over all channels together: the mean of the squares less the square of the mean.
            variance = (seen.squares.mean() / seen.count - seen.mean.mean().square()).item()
            if abs(variance - 1) < 0.1 or variance == 0:
                break
            conv.weight.div_(variance**0.5)


@dataclass
class _LeastSquares:
    """Normal equations of y ~ W z over pixels, summed up in float64."""

    gram: Any = 0.0
    cross: Any = 0.0
    square: float = 0.0

    def add(self, z_NCHW: Tensor, y_NCHW: Tensor) -> None:
        for z_CP, y_CP in zip(_pieces(z_NCHW), _pieces(y_NCHW), strict=True):
            self.gram += z_CP @ z_CP.T
            self.cross += y_CP @ z_CP.T
            self.square += y_CP.square().sum().item()

    def solve(self) -> Tensor:
        return cast(Tensor, self.cross @ torch.linalg.pinv(self.gram, rtol=RANK_TOLERANCE, hermitian=True))

    def error(self, w_OI: Tensor) -> float:
        """Sum of squares of y - W z, as a share of that of y."""
        w = w_OI.double()
        left: Tensor = self.square - 2 * (w * self.cross).sum() + ((w @ self.gram) * w).sum()
        return left.item() / max(self.square, 1e-300)


def solve_adapters(grafted: Grafted, graft: Graft, batches: Sequence[Tensor]) -> None:
    """Initialise project's 1 x 1 convolutions: the one after the donor in closed form, so that what the chain gives comes
    closest to the intact host; the one before it as the identity, or the host's principal channels, whichever ends
    closer. Never further from the host than with both as the identity."""
    chain: Any = grafted.network.get_submodule(graft.placed.chain)  # a row of modules
    before, after = getattr(chain, "before", None), _conv(chain, "after")
    up_to_after = chain[: list(chain).index(after)]
    stride = after.stride[0]
    starts: list[Callable[[], Any]] = [lambda: None]
    if before is not None:
        principal = _principal(grafted.host, graft, batches, before.out_channels)
        starts = [lambda: nn.init.dirac_(before.weight), lambda: before.weight.copy_(principal[..., None, None])]
    found = []
    for start in starts:
        start()
        problem = _LeastSquares()
        for given, target in targets(grafted.host, graft, batches):
            problem.add(up_to_after(given)[:, :, ::stride, ::stride], target)
        weight = problem.solve()
        found.append((problem.error(weight), weight, start))
    _, weight, start = min(found, key=lambda one: one[0])
    start()
    after.weight.copy_(weight[..., None, None])


def _conv(module: nn.Module, path: str) -> nn.Conv2d:
    return cast(nn.Conv2d, module.get_submodule(path))  # surgery puts no other there


def reconstruction_error(grafted: Grafted, graft: Graft, images_NCHW: Tensor) -> float:
    """How far what the chain gives is from the intact host: the sum of squares as a share of the host's."""
    chain = grafted.network.get_submodule(graft.placed.chain)
    with measuring(grafted.host), measuring(grafted.network), torch.no_grad():
        left = square = 0.0
        for given, target in targets(grafted.host, graft, images_NCHW.split(BATCH)):
            left += (chain(given) - target).double().square().sum().item()
            square += target.double().square().sum().item()
    return left / max(square, 1e-300)


def _principal(host: nn.Module, graft: Graft, batches: Sequence[Tensor], number: int) -> Tensor:
    """The `number` directions that hold most of what the chain is given, a row each; then zeros where there are fewer."""
    second: Any = 0.0
    for given, _ in targets(host, graft, batches):
        for x_CP in _pieces(given):
            second += x_CP @ x_CP.T
    _, vectors = torch.linalg.eigh(second)
    # A library may give either sign of a vector: its largest entry is made positive, on every device.
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    rows = vectors.flip(1).T[:number]
    return torch.cat([rows, rows.new_zeros(number - len(rows), rows.shape[1])]).float()
