"""The scores of tasks by name, imported when asked for; no PyTorch here."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.fields import Kind, check_names, kinds_of, parsed, text_of

if TYPE_CHECKING:
    from hypermask_fast.inference.base import Score

_SCORES = {
    "entropy": "hypermask_fast.inference.outputs:Entropy",
    "margin": "hypermask_fast.inference.outputs:Margin",
    "energy": "hypermask_fast.inference.outputs:Energy",
    "max_logit": "hypermask_fast.inference.outputs:MaxLogit",
    "box_entropy": "hypermask_fast.inference.box_entropy:BoxEntropy",
    "fecam": "hypermask_fast.inference.fecam:FeCAM",
    "tir": "hypermask_fast.inference.tir:TIR",
    "ridge": "hypermask_fast.inference.ridge:Ridge",
    "one_shot": "hypermask_fast.inference.blends:OneShot",
    "binary": "hypermask_fast.inference.blends:Binary",
}


class Option(NamedTuple):
    """An option of a score.

    Attributes:
        kind: Its type.
        default: Its default.
        rules: As in :func:`hypermask_fast.fields.setting`.
    """

    kind: Kind
    default: Any
    rules: Mapping[str, Any]


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


def options_of(name: str) -> Mapping[str, Option]:
    """Return the options of a score that the command line takes, by name.

    Raises:
        ConfigError: There is none of this name.
    """
    cls = _class_of(name)
    if not dataclasses.is_dataclass(cls):
        return {}
    kinds = kinds_of(cls)
    return {
        field.name: Option(kinds[field.name], field.default, field.metadata)
        for field in dataclasses.fields(cls)
        if "help" in field.metadata
    }


def option_lines() -> Iterator[str]:
    """Yield a line of help for each option of each score."""
    for name in _SCORES:
        for option, (kind, default, rules) in options_of(name).items():
            text = rules["help"]
            if "choices" in rules:
                text += f" ({', '.join(rules['choices'])})"
            yield f"{name}: {option}={kind.metavar} {text} [{text_of(default)}]"


def make_score(name: str, **options: Any) -> Score:
    """Return a new score.

    Args:
        name: One of :func:`scores`.
        options: Of its class.

    Raises:
        ConfigError: There is none of this name, an option is unknown, or its value is wrong.
    """
    cls = _class_of(name)
    check_names(f"option of the score {name}", options, inspect.signature(cls).parameters)
    made: Score = cls(**options)
    return made


def make_scores(names: Sequence[str], options: Sequence[str] = ()) -> dict[str, Score]:
    """Return new scores with the options of a command line.

    Args:
        names: Of :func:`scores`, or "all".
        options: NAME=VALUE, each for all of the scores that have an option of this name.

    Raises:
        ConfigError: A score or an option is unknown, or a value is wrong.
    """
    chosen = [name for given in names for name in (_SCORES if given == "all" else (given,))]
    known = {name: options_of(name) for name in chosen}
    given: dict[str, str] = {}
    for text in options:
        name, has_value, value = text.partition("=")
        if not has_value:
            raise ConfigError(f"score-option={text!r} has no value; give NAME=VALUE")
        given[name.strip().replace("-", "_")] = value
    what = f"option of the score {', '.join(chosen)}"
    check_names(what, given, {option for own in known.values() for option in own})
    return {
        name: make_score(
            name, **{k: parsed(k, own[k].kind, text) for k, text in given.items() if k in own}
        )
        for name, own in known.items()
    }


def _class_of(name: str) -> type[Any]:
    if name not in _SCORES:
        raise ConfigError(
            f"score={name!r} is unknown{nearest(name, _SCORES)}; choose one of {', '.join(_SCORES)}"
        )
    module, _, attribute = _SCORES[name].partition(":")
    cls: type[Any] = getattr(import_module(module), attribute)
    return cls
