"""What counts as a norm layer: the classes of torch. Everything that asks, asks here."""

from __future__ import annotations

from torch import nn

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)  # SyncBatchNorm among them
STATISTICS = (nn.modules.batchnorm._NormBase,)  # what has running statistics: batch and instance norm
NORMS = (*STATISTICS, nn.GroupNorm, nn.LayerNorm)


def norm_paths(network: nn.Module) -> list[str]:
    """Module paths of every norm layer, whatever it normalises by: the role `norm`."""
    return [path for path, module in network.named_modules() if isinstance(module, NORMS)]


def statistics_paths(network: nn.Module) -> list[str]:
    """Module paths of the layers that keep running statistics or normalise by the batch."""
    return [path for path, module in network.named_modules() if isinstance(module, STATISTICS)]


def batch_norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, BATCH_NORMS)]


def norm_kind(network: nn.Module) -> str:
    """What `network` normalises with: group where it has group norm, else batch."""
    return "group" if any(isinstance(module, nn.GroupNorm) for module in network.modules()) else "batch"
