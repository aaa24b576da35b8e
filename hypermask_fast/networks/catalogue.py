"""The networks by name and their options; imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hypermask_fast.errors import ConfigError, nearest, shown
from hypermask_fast.factories import FORM, check_factory, is_factory, parsed_options
from hypermask_fast.fields import Settings, setting


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """A network and its options.

    Attributes:
        name: The name by which :func:`hypermask_fast.networks.make_network` and runs choose it.
        normalized: Whether it has batch norm.
    """

    name: ClassVar[str]
    normalized: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class MLPSettings(NetworkSettings):
    """Options of the fully connected network."""

    name = "mlp"
    prefix = "mlp_"

    hidden: tuple[int, ...] = setting((100, 100), "widths of the MLP's hidden layers", low=1)


@dataclass(frozen=True, kw_only=True)
class ZenkeNetSettings(NetworkSettings):
    """The convolutional network for 32 x 32 images has no options."""

    name = "zenkenet"


@dataclass(frozen=True, kw_only=True)
class ZenkeNet64Settings(NetworkSettings):
    """The convolutional network for 64 x 64 images has no options."""

    name = "zenkenet64"


@dataclass(frozen=True, kw_only=True)
class ResNetSettings(NetworkSettings):
    """Options of the residual network."""

    name = "resnet"
    prefix = "resnet_"
    normalized = True

    n: int = setting(3, "blocks in each of the ResNet's three groups", low=1)
    k: int = setting(2, "widening factor of the ResNet's three groups", low=1)


@dataclass(frozen=True, kw_only=True)
class LeNetSettings(NetworkSettings):
    """LeNet-300-100 has no options."""

    name = "lenet-300-100"


@dataclass(frozen=True, kw_only=True)
class FC1024Settings(NetworkSettings):
    """The fully connected network of two hidden layers of 1024 has no options."""

    name = "fc1024"


@dataclass(frozen=True, kw_only=True)
class GEMResNet18Settings(NetworkSettings):
    """The slim ResNet-18 has no options."""

    name = "gem-resnet18"
    normalized = True


@dataclass(frozen=True, kw_only=True)
class OwnNetworkSettings(NetworkSettings):
    """A function of one's own that makes the network, and its options."""

    prefix = "network_"
    name_is = "network"

    name: str = setting(FORM, "the function")  # type: ignore[misc]
    options: str = setting(
        "", "arguments of the function that makes the network: NAME=VALUE,..., values as in TOML"
    )

    def check(self) -> None:
        check_factory("network", self.name)
        self.arguments()

    def arguments(self) -> dict[str, Any]:
        """Return the options by name."""
        return parsed_options("network_options", self.options)


NETWORKS: dict[str, type[NetworkSettings]] = {
    cls.name: cls
    for cls in (
        MLPSettings,
        ZenkeNetSettings,
        ZenkeNet64Settings,
        ResNetSettings,
        LeNetSettings,
        FC1024Settings,
        GEMResNet18Settings,
    )
}


def network_settings(name: str) -> type[NetworkSettings]:
    """Return the settings class of a network, of the catalogue or one's own.

    Raises:
        ConfigError: There is no network of this name.
    """
    if is_factory(name):
        return OwnNetworkSettings
    if not isinstance(name, str) or name not in NETWORKS:
        raise ConfigError(
            f"network={shown(name)} is unknown{nearest(name, NETWORKS)}; choose one of "
            f"{', '.join(NETWORKS)}"
        )
    return NETWORKS[name]
