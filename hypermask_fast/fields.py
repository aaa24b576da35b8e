"""Settings as frozen dataclasses: their fields' help and rules, checks, TOML and text forms."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import numbers
import os
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from hypermask_fast.errors import ConfigError, nearest, shown
from hypermask_fast.factories import FORM, check_factory, is_factory

_Class = TypeVar("_Class", bound=type)

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
    """Type of a setting.

    Attributes:
        base: str, bool, int, float or tuple (of integers).
        words: Values beside those of the base: None, and strings.
    """

    base: type
    words: tuple[str | None, ...] = ()

    @property
    def metavar(self) -> str:
        """The word for a value in the command line's help."""
        strings = [word.upper() for word in self.words if word is not None]
        return "|".join([_WORDS[self.base][0], *strings])

    @property
    def wanted(self) -> str:
        """The words for a right value in an error."""
        return ", or ".join([_WORDS[self.base][1], *(word or "none" for word in self.words)])


def kinds_of(cls: type[Any]) -> Mapping[str, Kind]:
    """Return the kind of each field of the dataclass ``cls``, in their order."""
    given: Any = cls
    return _kinds_of(given)


@functools.cache  # reading annotations is slow, and settings are read field by field
def _kinds_of(cls: Any) -> Mapping[str, Kind]:
    hints = typing.get_type_hints(cls)
    kinds = {field.name: _kind(hints[field.name]) for field in dataclasses.fields(cls)}
    return types.MappingProxyType(kinds)


def _kind(hint: Any) -> Kind:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    first, *others = typing.get_args(hint) if is_union else (hint,)
    words: list[str | None] = []
    for other in others:
        words += [None] if other is type(None) else typing.get_args(other)
    return Kind(typing.get_origin(first) or first, tuple(words))


def setting(default: Any, text: str, more: str = "", **rules: Any) -> Any:
    """Make a field of a :class:`Settings` class.

    Args:
        default: Its default.
        text: The sentence that explains it, on the command line and in the documentation.
        more: What the documentation says beside it.
        rules: ``choices``, ``low`` and ``high`` (inclusive), ``above`` (exclusive); those of a list
            hold for each of its items. ``factory``: beside the choices ``module:function``.
    """
    return dataclasses.field(default=default, metadata={"help": text, "more": more, **rules})


def text_of(value: Any) -> str:
    """Return ``value`` as the command line shows and takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _sentence(text: str) -> str:
    """Return ``text`` with a full stop, and a capital where it does not begin with code."""
    first, *_ = text.split()
    is_word = first.isalpha() or first.endswith(",")
    return f"{text[0].upper() if is_word else text[0]}{text[1:]}."


def choices_text(rules: Mapping[str, Any]) -> str:
    """Return the choices of a setting that has some."""
    return ", ".join(rules["choices"]) + (f", or {FORM}" if rules.get("factory") else "")


def described(fields: Mapping[str, dataclasses.Field[Any]]) -> str:
    """Return the lines of a docstring that explain fields made by :func:`setting`, by name."""
    lines = []
    for name, field in fields.items():
        rules = field.metadata
        parts = [_sentence(part) for part in (rules["help"], rules["more"]) if part]
        parts.append(f"Default: {field.default!r}.")
        if "choices" in rules:
            parts.append(f"One of {choices_text(rules)}.")
        text = f"{name}: {' '.join(parts)}"
        lines.append(
            textwrap.fill(
                text,
                100,
                initial_indent=" " * 8,
                subsequent_indent=" " * 12,
                break_on_hyphens=False,
            )
        )
    return "\n".join(lines)


def document(cls: type[Any]) -> None:
    """Let the docstring of a class go on with its own fields that :func:`setting` makes."""
    fields = {k: v for k, v in vars(cls).items() if isinstance(v, dataclasses.Field)}
    own = {name: field for name, field in fields.items() if "help" in field.metadata}
    if own:
        cls.__doc__ = f"{cls.__doc__}\n\n    Attributes:\n{described(own)}\n    "


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the settings classes: frozen dataclasses whose fields :func:`setting` makes.

    Whole numbers are taken for floats, lists for tuples, and paths for strings. The docstring of a
    subclass goes on with what its fields say of themselves.

    Attributes:
        prefix: What stands before a field's name where settings have no tables: in Python's flat
            options, on the command line, and in errors.
        name_is: What a field called "name" is called there.

    Raises:
        ConfigError: A value has the wrong type, is out of range or is not one of the choices, or
            two settings contradict each other.
    """

    prefix: ClassVar[str] = ""
    name_is: ClassVar[str] = "name"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        document(cls)

    def __post_init__(self) -> None:
        kinds = kinds_of(type(self))
        for field in dataclasses.fields(self):
            name = self.name_is if field.name == "name" else self.prefix + field.name
            value = checked(name, field.metadata, kinds[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Raise ConfigError where settings contradict each other."""

    @classmethod
    def merged(cls, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return values by field name with changes in place of some."""
        return {**values, **changes}

    def values(self) -> dict[str, Any]:
        """Return the value of each field."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def chosen(cls, owner: str, base: Self | None, options: Mapping[str, Any]) -> Self:
        """Return the settings that a constructor was given.

        Args:
            owner: Whose constructor it is, for errors.
            base: Settings; None: the defaults.
            options: Values by field name, in place of those.

        Raises:
            ConfigError: The base is no object of this class, a name is unknown, or a value is
                wrong.
        """
        if base is not None and not isinstance(base, cls):
            raise ConfigError(
                f"settings of {owner} are of type {type(base).__name__}; give {cls.__name__}"
            )
        if base is not None and not options:
            return base
        check_names(f"option of {owner}", options, kinds_of(cls))
        return cls(**cls.merged(base.values() if base else {}, options))


def check_names(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise ConfigError where a name that was given is not known."""
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{what} {name!r} is unknown{nearest(name, known)}; remove or rename it"
            )


def takes_options(settings: type[Settings]) -> Callable[[_Class], _Class]:
    """Return a decorator of a class whose constructor takes the fields of ``settings`` as options.

    The class's signature names them in place of ``**options``, and its docstring explains them
    where it says ``{options}``.
    """

    def decorate(cls: _Class) -> _Class:
        # Not of the class, which has the signature of a base that was decorated.
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        fields = {field.name: field for field in dataclasses.fields(settings)}
        _, *arguments = signature.parameters.values()
        named = [p for p in arguments if p.kind is not p.VAR_KEYWORD]
        kind = inspect.Parameter.KEYWORD_ONLY
        options = [
            inspect.Parameter(name, kind, default=field.default, annotation=field.type)
            for name, field in fields.items()
        ]
        signature = signature.replace(
            parameters=[*named, *options], return_annotation=signature.empty
        )
        cls.__signature__ = signature  # type: ignore[attr-defined]
        cls.__doc__ = (cls.__doc__ or "").replace("        {options}", described(fields))
        return cls

    return decorate


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
        try:
            number = float(value)
        except OverflowError:  # of an integer
            raise TypeError from None
        if math.isfinite(number):
            return number
    raise TypeError


def checked(name: str, rules: Mapping[str, Any], kind: Kind, value: Any) -> Any:
    """Return ``value`` in the type of a setting, or raise ConfigError where it breaks a rule."""
    if (value is None or isinstance(value, str)) and value in kind.words:
        return value
    if kind.base is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value!r} is not finite; give {kind.wanted}")
    try:
        value = _converted(kind.base, value)
    except TypeError:
        raise ConfigError(
            f"{name}={shown(value)} is of type {type(value).__name__}; give {kind.wanted}"
        ) from None
    is_text = isinstance(value, str) and not rules.get("path")
    if is_text and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(f"{name}={value!r} is not Unicode, which settings are kept in; rename it")
    choices = rules.get("choices")
    if rules.get("factory") and is_factory(value):
        check_factory(name, value)
    elif choices and value not in choices:
        suggestion = nearest(value, choices)
        raise ConfigError(
            f"{name}={value!r} is unknown{suggestion}; choose one of {choices_text(rules)}"
        )
    items = value if kind.base is tuple else (value,)
    for rule, is_outside, words in _RANGES:
        if rule in rules and any(is_outside(item, rules[rule]) for item in items):
            raise ConfigError(f"{name}={value!r} is out of range; give {words} {rules[rule]}")
    return value


def check_value(name: str, base: type, value: Any, *words: str | None, **rules: Any) -> Any:
    """Return an argument of a function as :func:`checked` does a setting.

    Args:
        name: Of the argument.
        base: As in :class:`Kind`.
        value: What was given; for a tuple any iterable of integers.
        *words: Other values that are allowed, such as None.
        **rules: As in :func:`setting`.

    Raises:
        ConfigError: It has another type, or breaks a rule.
    """
    if base is tuple and isinstance(value, Iterable) and not isinstance(value, (str, bytes, dict)):
        value = tuple(value)
    return checked(name, rules, Kind(base, words), value)


def strings(name: str, value: str | Iterable[str]) -> tuple[str, ...]:
    """Return a string, or several, as a tuple; ConfigError for anything else."""
    if isinstance(value, str):
        return (value,)
    given = tuple(value) if isinstance(value, Iterable) else (value,)
    if not isinstance(value, Iterable) or not all(isinstance(item, str) for item in given):
        raise ConfigError(
            f"{name}={shown(value)} is of type {type(value).__name__}; give a string, or a list of "
            "strings"
        )
    return given


def parsed(name: str, kind: Kind, text: str) -> Any:
    """Convert command-line ``text`` to ``kind``, or raise ConfigError."""
    word = text.strip().lower()
    if word in [other or "none" for other in kind.words]:
        return None if word == "none" else word
    try:
        if kind.base is bool:
            return _BOOLS[word]
        if kind.base is tuple:
            return tuple(int(item) for item in word.split(",")) if word else ()
        return text if kind.base is str else kind.base(word)
    except (ValueError, KeyError):
        known = [*("true", "false")[: 2 * (kind.base is bool)], *(w or "none" for w in kind.words)]
        meant = nearest(word, known)
        raise ConfigError(f"{name}={text!r} cannot be read{meant}; give {kind.wanted}") from None


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
