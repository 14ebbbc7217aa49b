"""Hosts: the networks that receive a donor, and the named places in them. A dataclass a kind, whose `build` makes one."""

from layergraft.hosts.own_module import ModuleHost
from layergraft.hosts.resnets import CifarResNet, TorchvisionResNet

__all__ = ["CifarResNet", "ModuleHost", "TorchvisionResNet"]
