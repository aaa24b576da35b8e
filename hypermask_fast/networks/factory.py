"""Networks by name, as presets and the command line give them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence

from torch import nn

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.fields import check_value, kinds_of
from hypermask_fast.networks.catalogue import (
    FC1024Settings,
    GEMResNet18Settings,
    LeNetSettings,
    MLPSettings,
    NetworkSettings,
    ResNetSettings,
    ZenkeNet64Settings,
    ZenkeNetSettings,
    network_settings,
)
from hypermask_fast.networks.gem_resnet import GEMResNet18
from hypermask_fast.networks.mlp import FC1024, MLP, LeNet300_100
from hypermask_fast.networks.resnet import ResNet
from hypermask_fast.networks.zenkenet import ZenkeNet, ZenkeNet64

_Shape = tuple[int, ...]


def _misfit(name: str, shape: _Shape, expected: str) -> ConfigError:
    return ConfigError(
        f"network {name!r} takes inputs of shape {expected}, not {shape}; "
        "choose another network or resize the inputs"
    )


def _channels(name: str, shape: _Shape, size: int) -> int:
    """Return the channels of square images of this size; refuse every other shape."""
    if len(shape) != 3 or shape[1:] != (size, size):
        raise _misfit(name, shape, f"(channels, {size}, {size})")
    return shape[0]


def _mlp(shape: _Shape, num_classes: int, *, hidden: Sequence[int], bias: bool = True) -> nn.Module:
    return MLP(math.prod(shape), hidden, num_classes, bias=bias)


def _lenet(shape: _Shape, num_classes: int) -> nn.Module:
    if math.prod(shape) != LeNet300_100.in_features:
        raise _misfit("lenet-300-100", shape, "(1, 28, 28) or (784,)")
    return LeNet300_100(num_classes)


def _fc1024(shape: _Shape, num_classes: int) -> nn.Module:
    return FC1024(math.prod(shape), num_classes)


def _zenkenet(shape: _Shape, num_classes: int, *, dropout: bool = True) -> nn.Module:
    return ZenkeNet(num_classes, _channels("zenkenet", shape, ZenkeNet.image_size), dropout)


def _zenkenet64(shape: _Shape, num_classes: int, *, dropout: bool = True) -> nn.Module:
    return ZenkeNet64(num_classes, _channels("zenkenet64", shape, ZenkeNet64.image_size), dropout)


def _resnet(
    shape: _Shape,
    num_classes: int,
    *,
    n: int,
    k: int,
    bias: bool = True,
    track_running_stats: bool = False,
) -> nn.Module:
    if len(shape) != 3:
        raise _misfit("resnet", shape, "(channels, height, width)")
    return ResNet(
        n, k, num_classes, bias, in_channels=shape[0], track_running_stats=track_running_stats
    )


def _gem_resnet18(
    shape: _Shape, num_classes: int, *, track_running_stats: bool = True
) -> nn.Module:
    if len(shape) != 3:
        raise _misfit("gem-resnet18", shape, "(channels, height, width)")
    return GEMResNet18(num_classes, shape[0], track_running_stats=track_running_stats)


_BUILDERS: dict[type[NetworkSettings], Callable[..., nn.Module]] = {
    MLPSettings: _mlp,
    LeNetSettings: _lenet,
    ZenkeNetSettings: _zenkenet,
    ZenkeNet64Settings: _zenkenet64,
    ResNetSettings: _resnet,
    FC1024Settings: _fc1024,
    GEMResNet18Settings: _gem_resnet18,
}


def make_network(
    name: str, input_shape: Sequence[int], num_classes: int, **options: object
) -> nn.Module:
    """Build a network by its name.

    Args:
        name: "mlp", "lenet-300-100", "fc1024", "zenkenet", "zenkenet64", "resnet" or
            "gem-resnet18".
        input_shape: Shape of one input without the batch, such as (784,) or (3, 32, 32).
        num_classes: Outputs.
        options: Those of its settings in the catalogue, and "mlp": bias = True; "zenkenet",
            "zenkenet64": dropout = True; "resnet": bias = True, track_running_stats = False;
            "gem-resnet18": track_running_stats = True.

    Raises:
        ConfigError: If the name or an option is unknown, a size is not positive, or the network
            cannot take inputs of this shape.
    """
    settings = network_settings(name)
    shape = check_value("input_shape", tuple, input_shape, low=1)
    if not shape:
        raise ConfigError("input_shape is (); give the size of each axis of an input")
    check_value("num_classes", int, num_classes, low=1)
    build = _BUILDERS[settings]
    parameters = inspect.signature(build).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"network {name!r} has no option {option!r}{nearest(option, known)}; "
                f"give {', '.join(known) or 'none'}"
            )
    own = {option: value for option, value in options.items() if option in kinds_of(settings)}
    return build(shape, num_classes, **{**options, **settings(**own).values()})
