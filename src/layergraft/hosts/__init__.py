"""Hosts: the networks that receive a donor, and the named places in them. A dataclass a kind, whose `build` makes one."""

from layergraft.hosts.resnets import CifarResNet, TorchvisionResNet
from layergraft.hosts.user_module import ModuleHost

__all__ = ["CifarResNet", "ModuleHost", "TorchvisionResNet"]
