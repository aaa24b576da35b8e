"""Target networks as published: ordinary modules, whose parameters are named in execution order."""

from hypermask_fast.networks.factory import make_network
from hypermask_fast.networks.mlp import MLP, LeNet300_100
from hypermask_fast.networks.resnet import ResNet
from hypermask_fast.networks.zenkenet import ZenkeNet, ZenkeNet64

__all__ = ["MLP", "LeNet300_100", "ResNet", "ZenkeNet", "ZenkeNet64", "make_network"]
