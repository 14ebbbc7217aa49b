"""Hosts: the networks that receive a donor, and the named places in them. A dataclass a file; `build` makes the network."""

from layergraft.hosts.cifar_resnet import CifarResNet
from layergraft.hosts.torchvision_resnet import TorchvisionResNet

__all__ = ["CifarResNet", "TorchvisionResNet"]
