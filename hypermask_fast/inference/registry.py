"""The scores of tasks by name, imported when asked for; no PyTorch here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hypermask_fast.errors import ConfigError, nearest

if TYPE_CHECKING:
    from hypermask_fast.inference.base import Score

_SCORES = {
    "entropy": "hypermask_fast.inference.outputs:Entropy",
    "margin": "hypermask_fast.inference.outputs:Margin",
    "energy": "hypermask_fast.inference.outputs:Energy",
    "box_entropy": "hypermask_fast.inference.box_entropy:BoxEntropy",
    "fecam": "hypermask_fast.inference.fecam:FeCAM",
}


def register(name: str, score: str) -> None:
    """Add a score.

    Args:
        name: The name by which `predict` and the command line choose it.
        score: "module:Name" of a subclass of :class:`hypermask_fast.inference.base.Score`, whose
            options are keyword arguments with defaults.

    Raises:
        ConfigError: Another score has the name.
    """
    if _SCORES.setdefault(name, score) != score:
        raise ConfigError(f"a score {name!r} is registered already; give another name")


def scores() -> tuple[str, ...]:
    """Return the names of all scores."""
    return tuple(_SCORES)


def make_score(name: str, **options: Any) -> Score:
    """Return a new score.

    Args:
        name: One of :func:`scores`.
        options: Of its class.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in _SCORES:
        raise ConfigError(
            f"score={name!r} is unknown{nearest(name, _SCORES)}; choose one of {', '.join(_SCORES)}"
        )
    module, _, attribute = _SCORES[name].partition(":")
    return getattr(import_module(module), attribute)(**options)
