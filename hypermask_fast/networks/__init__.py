"""Target networks as published: ordinary modules, whose parameters are named in execution order.

The public names are imported when first used: the catalogue is read without PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypermask_fast.lazy import lazy_names

if TYPE_CHECKING:
    from hypermask_fast.networks.factory import make_network
    from hypermask_fast.networks.mlp import MLP, LeNet300_100
    from hypermask_fast.networks.resnet import ResNet
    from hypermask_fast.networks.zenkenet import ZenkeNet, ZenkeNet64

__all__ = ["MLP", "LeNet300_100", "ResNet", "ZenkeNet", "ZenkeNet64", "make_network"]

_MODULES = {
    "MLP": "mlp",
    "LeNet300_100": "mlp",
    "ResNet": "resnet",
    "ZenkeNet": "zenkenet",
    "ZenkeNet64": "zenkenet",
    "make_network": "factory",
}
__getattr__ = lazy_names(__name__, _MODULES)
