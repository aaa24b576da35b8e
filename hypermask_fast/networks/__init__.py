"""Target networks as published: ordinary modules, whose parameters are named in execution order.

The public names are imported when first used: the catalogue is read without PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypermask_fast.lazy import lazy_names

if TYPE_CHECKING:
    from hypermask_fast.networks.factory import make_network
    from hypermask_fast.networks.gem_resnet import GEMResNet18
    from hypermask_fast.networks.mlp import FC1024, MLP, LeNet300_100
    from hypermask_fast.networks.resnet import ResNet
    from hypermask_fast.networks.zenkenet import ZenkeNet, ZenkeNet64

__all__ = [
    "FC1024",
    "MLP",
    "GEMResNet18",
    "LeNet300_100",
    "ResNet",
    "ZenkeNet",
    "ZenkeNet64",
    "make_network",
]

_MODULES = {
    "FC1024": "mlp",
    "GEMResNet18": "gem_resnet",
    "MLP": "mlp",
    "LeNet300_100": "mlp",
    "ResNet": "resnet",
    "ZenkeNet": "zenkenet",
    "ZenkeNet64": "zenkenet",
    "make_network": "factory",
}
__getattr__ = lazy_names(__name__, _MODULES)
