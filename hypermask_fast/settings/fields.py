"""Typed settings: the kind of a dataclass field, its checks, and its forms in TOML and in text."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hypermask_fast.errors import ConfigError, nearest

_WORDS = {
    str: ("TEXT", "a string"),
    bool: ("BOOL", "true or false"),
    int: ("INT", "an integer"),
    float: ("FLOAT", "a finite number"),
    tuple: ("INT,INT", "a list of integers"),
}
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_RANGES: Sequence[tuple[str, Callable[[float, float], bool], str]] = (
    ("low", lambda value, bound: value < bound, "at least"),
    ("above", lambda value, bound: value <= bound, "more than"),
    ("high", lambda value, bound: value > bound, "at most"),
)


class Kind(NamedTuple):
    """Type of a setting: ``base`` is str, bool, int, float or tuple (of integers)."""

    base: type
    optional: bool

    @property
    def metavar(self) -> str:
        """The word for a value in the command line's help."""
        return _WORDS[self.base][0]

    @property
    def wanted(self) -> str:
        """The words for a right value in an error."""
        return _WORDS[self.base][1] + (", or none" if self.optional else "")


def kinds_of(cls: type) -> Mapping[str, Kind]:
    """Return the kind of each field of the dataclass ``cls``, in their order."""
    kinds = {}
    for name, hint in typing.get_type_hints(cls).items():
        optional = isinstance(hint, types.UnionType)
        inner = typing.get_args(hint)[0] if optional else hint
        kinds[name] = Kind(typing.get_origin(inner) or inner, optional)
    return kinds


def setting(default: Any, text: str, **rules: Any) -> Any:
    """Make a dataclass field whose metadata holds its help and the rules that ``checked`` applies.

    Rules: ``choices``, ``low`` and ``high`` (inclusive), ``above`` (exclusive); those of a list
    hold for each of its items.
    """
    return dataclasses.field(default=default, metadata={"help": text, **rules})


def _converted(base: type, value: Any) -> Any:
    """Return ``value`` as ``base`` where nothing is lost, else raise TypeError."""
    if base is bool and isinstance(value, bool):
        return value
    if base is str and isinstance(value, (str, os.PathLike)):
        return str(os.fspath(value))
    if base is tuple and isinstance(value, (tuple, list)):
        return tuple(_converted(int, item) for item in value)
    if base is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if base is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number):
            return number
    raise TypeError


def checked(field: dataclasses.Field[Any], kind: Kind, value: Any) -> Any:
    """Return ``value`` in the type of ``field``, or raise ConfigError where it breaks a rule."""
    name, rules = field.name, field.metadata
    if value is None and kind.optional:
        return None
    try:
        value = _converted(kind.base, value)
    except TypeError:
        raise ConfigError(
            f"{name}={value!r} is of type {type(value).__name__}; give {kind.wanted}"
        ) from None
    choices = rules.get("choices")
    if choices and value not in choices:
        suggestion = nearest(value, choices)
        raise ConfigError(
            f"{name}={value!r} is unknown{suggestion}; choose one of {', '.join(choices)}"
        )
    items = value if kind.base is tuple else (value,)
    for rule, is_outside, words in _RANGES:
        if rule in rules and any(is_outside(item, rules[rule]) for item in items):
            raise ConfigError(f"{name}={value!r} is out of range; give {words} {rules[rule]}")
    return value


def parsed(name: str, kind: Kind, text: str) -> Any:
    """Convert command-line ``text`` to ``kind``, or raise ConfigError."""
    word = text.strip().lower()
    if kind.optional and word == "none":
        return None
    try:
        if kind.base is bool:
            return _BOOLS[word]
        if kind.base is tuple:
            return tuple(int(item) for item in word.split(",")) if word else ()
        return text if kind.base is str else kind.base(word)
    except (ValueError, KeyError):
        raise ConfigError(f"{name}={text!r} cannot be read; give {kind.wanted}") from None


def toml_value(value: Any) -> str:
    """Return ``value`` as TOML; None, which TOML lacks, becomes the string ``"none"``."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(repr, value))}]"
    return repr(value)
