"""Parts of a network by name, glob, class, or whatever a function says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from hypermask_fast.errors import ConfigError, nearest, shown

Part = nn.Module | nn.Parameter
Pattern = str | type[nn.Module] | Callable[[str, Part], object]
"""A name or glob of modules and parameters, a class of modules, or a function of name and part."""
Patterns = Pattern | Iterable[Pattern]
_SHOWN = 30


def patterns(option: str, value: Patterns) -> tuple[Pattern, ...]:
    """Return a pattern, or several, as a tuple; ConfigError for anything else.

    Args:
        option: What the patterns are given as, for errors.
        value: What was given.
    """
    several = not isinstance(value, str) and not callable(value) and isinstance(value, Iterable)
    given: tuple[Any, ...] = tuple(value) if several else (value,)  # type: ignore[arg-type]
    for item in given:
        is_class = isinstance(item, type)
        right = issubclass(item, nn.Module) if is_class else isinstance(item, str) or callable(item)
        if not right or isinstance(item, nn.Module):
            inside = f" and has {shown(item)}" if several else ""
            raise ConfigError(
                f"{option}={shown(value)} is of type {type(value).__name__}{inside}; give names or "
                "globs of modules and parameters, classes of modules, or functions of a name and a "
                "part"
            )
    return given


def _parts(net: nn.Module) -> Iterator[tuple[str, str, Part]]:
    """Yield each name of each module and parameter, with that of the module that has it."""
    for name, module in net.named_modules(remove_duplicate=False):
        yield name, name.rpartition(".")[0], module
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield f"{name}.{key}".lstrip("."), name, parameter


def _is_named(option: str, pattern: Pattern, name: str, part: Part) -> bool:
    if isinstance(pattern, str):
        return bool(name) and fnmatchcase(name, pattern)
    if isinstance(pattern, type):
        return isinstance(part, pattern)
    try:
        return bool(pattern(name, part))
    except Exception as error:  # A function may raise anything.
        raise ConfigError(
            f"{option}={shown(pattern)} raised a {type(error).__name__} for {name!r} and the "
            f"{type(part).__name__} of this name; give a function of a name and a part"
        ) from error


class Chosen:
    """The modules and parameters of a network that patterns name, with all that is in them.

    A part with several names, such as a tied weight, is chosen by any of them.

    Args:
        net: The network.
        option: What the patterns are given as, for errors.
        given: The patterns.

    Attributes:
        names: Theirs, sorted, but for that of the network itself.

    Raises:
        ConfigError: A pattern names nothing.
    """

    def __init__(self, net: nn.Module, option: str, given: Iterable[Pattern]) -> None:
        self._parts: dict[int, Part] = {}
        parts = list(_parts(net))
        chosen: set[str] = set()
        for pattern in given:
            found = {name for name, _, part in parts if _is_named(option, pattern, name, part)}
            if not found:
                raise ConfigError(_nothing(net, option, pattern))
            chosen |= found
        for name, owner, part in parts:
            # A network's own name is no name of what is in it.
            if name in chosen or (owner in chosen and (name != owner)):
                chosen.add(name)
                self._parts[id(part)] = part
        self.names = sorted(chosen - {""})

    def __contains__(self, part: Part) -> bool:
        return id(part) in self._parts


def _nothing(net: nn.Module, option: str, pattern: Pattern) -> str:
    modules = {name: module for name, module in net.named_modules(remove_duplicate=False) if name}
    if isinstance(pattern, str):
        shown_as, listed = repr(pattern), list(modules)
        close = nearest(pattern, [*modules, *dict(net.named_parameters(remove_duplicate=False))])
    else:
        kinds = dict.fromkeys(type(module).__name__ for module in modules.values())
        shown_as, listed, close = shown(pattern), list(kinds), ""
    more = "" if len(listed) <= _SHOWN else f" and {len(listed) - _SHOWN} more"
    what = "modules are" if isinstance(pattern, str) else "classes of its modules are"
    return (
        f"{option}={shown_as} matches no module or parameter{close}; the {what} "
        f"{', '.join(listed[:_SHOWN])}{more}"
    )
