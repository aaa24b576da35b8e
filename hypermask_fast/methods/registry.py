"""The methods by name: their settings and learners, imported when asked for; no PyTorch here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.methods.settings import MethodSettings

if TYPE_CHECKING:
    from hypermask_fast.methods.base import Learner


class Method(NamedTuple):
    """Where a method's classes are, as "module:Name"; the module of the settings has no PyTorch.

    Attributes:
        settings: A subclass of :class:`MethodSettings`.
        learner: A subclass of Learner that is called as ``learner(net, settings=...)``.
    """

    settings: str
    learner: str


_METHODS = {
    "hypermask": Method(
        "hypermask_fast.methods.hypermask.settings:HyperMaskSettings",
        "hypermask_fast.methods.hypermask.learner:HyperMask",
    ),
    "hnet": Method(
        "hypermask_fast.methods.hnet.settings:HNETSettings",
        "hypermask_fast.methods.hnet.learner:HNET",
    ),
    "hnet-tir": Method(
        "hypermask_fast.methods.hnet_tir.settings:HNETTIRSettings",
        "hypermask_fast.methods.hnet_tir.learner:HNETTIR",
    ),
    "hnet-r": Method(
        "hypermask_fast.methods.hnet_r.settings:HNETRSettings",
        "hypermask_fast.methods.hnet_r.learner:HNETR",
    ),
    "supsup": Method(
        "hypermask_fast.methods.supsup.settings:SupSupSettings",
        "hypermask_fast.methods.supsup.learner:SupSup",
    ),
    "exssnet": Method(
        "hypermask_fast.methods.exssnet.settings:ExSSNeTSettings",
        "hypermask_fast.methods.exssnet.learner:ExSSNeT",
    ),
    "hyperinterval": Method(
        "hypermask_fast.methods.hyperinterval.settings:HyperIntervalSettings",
        "hypermask_fast.methods.hyperinterval.learner:HyperInterval",
    ),
}


def register(name: str, settings: str, learner: str) -> None:
    """Add a method from outside of the package.

    Args:
        name: The name by which configurations and the command line choose it.
        settings, learner: As in :class:`Method`.

    Raises:
        ConfigError: Another method has the name.
    """
    method = Method(settings, learner)
    if _METHODS.setdefault(name, method) != method:
        raise ConfigError(f"a method {name!r} is registered already; give another name")


def methods() -> tuple[str, ...]:
    """Return the names of all methods."""
    return tuple(_METHODS)


def _method(name: str) -> Method:
    if name not in _METHODS:
        raise ConfigError(
            f"method={name!r} is unknown{nearest(name, _METHODS)}; choose one of "
            f"{', '.join(_METHODS)}"
        )
    return _METHODS[name]


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def settings_of(name: str) -> type[MethodSettings]:
    """Return the settings class of a method.

    Raises:
        ConfigError: The method is unknown.
    """
    return _imported(_method(name).settings)


def learner_of(name: str) -> type[Learner]:
    """Return the learner class of a method.

    Raises:
        ConfigError: The method is unknown.
    """
    return _imported(_method(name).learner)


def name_of(settings: MethodSettings) -> str:
    """Return the name of the method that settings belong to.

    Raises:
        ConfigError: No method that is registered has settings of their class.
    """
    for name in _METHODS:
        if settings_of(name) is type(settings):
            return name
    raise ConfigError(
        f"settings of type {type(settings).__name__} belong to no method; register() it first"
    )
