"""Functions of one's own that a setting names as ``module:function``; imports no PyTorch."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from hypermask_fast.errors import ConfigError, HypermaskError, nearest

FORM = "MODULE:FUNCTION"


def is_factory(value: object) -> bool:
    """Return whether a setting names a function, and not an entry of a catalogue."""
    return isinstance(value, str) and ":" in value


def check_factory(setting: str, value: str) -> None:
    """Raise ConfigError where a setting is not of the form ``module:function``."""
    module, _, function = value.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise ConfigError(
            f"{setting}={value!r} names no function; give {FORM}, as in 'mymodule:make'"
        )


@contextmanager
def folder_importable() -> Iterator[None]:
    """Let modules of the current folder be imported inside, as ``python -m`` does."""
    folder = os.getcwd()
    is_there = folder in sys.path or "" in sys.path
    if not is_there:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if not is_there and folder in sys.path:
            sys.path.remove(folder)


def _reason(error: Exception) -> str:
    """Return what an error of a user's code says, and the line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}, {Path(frame.filename).name}, line {frame.lineno}"


@contextmanager
def failing_as(what: str, fix: str) -> Iterator[None]:
    """Raise ConfigError, ``what`` with the reason, where a user's code raises inside."""
    try:
        yield
    except HypermaskError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} ({_reason(error)}); {fix}") from error


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    from hypermask_fast.vision import import_torchvision

    import_torchvision()
    return importlib.import_module(name)


def _module(setting: str, value: str) -> ModuleType:
    name = value.partition(":")[0]
    importlib.invalidate_caches()  # the file may be younger than what Python knows of its folder
    try:
        return _imported(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{setting}={value!r}: {name} imports {error.name!r}, which is not installed; "
                "install it"
            ) from error
        raise ConfigError(
            f"{setting}={value!r}: there is no module {error.name!r} in {os.getcwd()} or on "
            "Python's path; start in the folder that holds it, or name that in PYTHONPATH"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{setting}={value!r}: {name} cannot be imported ({_reason(error)}); correct it"
        ) from error


def load_factory(setting: str, value: str) -> Callable[..., Any]:
    """Import the function that a setting names.

    Args:
        setting: Its name, for errors.
        value: ``module:function``; the function may be an attribute of a class.

    Raises:
        ConfigError: There is no such module or function, or the module cannot be imported.
    """
    check_factory(setting, value)
    found: Any = _module(setting, value)
    module, _, path = value.partition(":")
    for part in path.split("."):
        if not hasattr(found, part):
            known = [name for name, item in vars(found).items() if callable(item)]
            raise ConfigError(
                f"{setting}={value!r}: {module} has no {part!r}{nearest(part, known)}; name a "
                "function that it has"
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{setting}={value!r} is of type {type(found).__name__}; name a function")
    function: Callable[..., Any] = found
    return function


def file_digest(value: str) -> str | None:
    """Return the SHA-256 of the file of a function's module, which was imported; None if none."""
    path = getattr(sys.modules.get(value.partition(":")[0]), "__file__", None)
    try:
        return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def parsed_options(setting: str, text: str) -> dict[str, Any]:
    """Return the keyword arguments of a text like ``width=64, name='x', sizes=[3, 4]``.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        values = tomllib.loads(f"options = {{{text}}}")
    except tomllib.TOMLDecodeError as error:
        values = {}
        cause: Exception | None = error
    else:
        cause = None
    options = values.get("options")
    if cause is not None or len(values) != 1 or not isinstance(options, dict):
        raise ConfigError(
            f"{setting}={text!r} cannot be read; give NAME=VALUE with commas between, the values "
            "as TOML has them: width=64,act='relu',sizes=[3,4]"
        ) from cause
    return options


def call_factory(
    setting: str,
    value: str,
    offered: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    otherwise: str | None = None,
) -> Any:
    """Call the function that a setting names.

    Args:
        setting: Its name, for errors.
        value: ``module:function``.
        offered: Arguments that it gets where it has parameters of these names.
        options: Arguments that it gets whatever it has.
        otherwise: The one of ``offered`` that it gets as a keyword where it has a parameter
            ``**any`` and none of these names.

    Raises:
        ConfigError: It cannot be imported, does not take these arguments, or raises an error.
    """
    function = load_factory(setting, value)
    try:
        parameters = dict(inspect.signature(function).parameters)
    except ValueError:  # of some that are not written in Python
        parameters = {}
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    named = [name for name, p in parameters.items() if p.kind in kinds]
    given = {name: offered[name] for name in offered if name in named}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not given and takes_any and otherwise is not None:
        given[otherwise] = offered[otherwise]
    given |= options
    unknown = [] if takes_any or not parameters else [n for n in options if n not in named]
    if unknown:
        raise ConfigError(
            f"{setting}_options has {unknown[0]!r}, which {value!r} does not take"
            f"{nearest(unknown[0], named)}; remove or rename it"
        )
    lacking = [
        name
        for name, p in parameters.items()
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and name not in given
    ]
    if lacking:
        raise ConfigError(
            f"{setting}={value!r} wants {lacking[0]!r}, which a run has nothing for; it offers "
            f"{', '.join(offered)}, and --{setting}-options {lacking[0]}=... gives others"
        )
    with failing_as(f"{setting}={value!r} fails", "correct the function or its options"):
        return function(**given)
