"""Presets: TOML files of this folder that hold named settings, the published ones among them."""

from __future__ import annotations

import itertools
import tomllib
from importlib import resources
from typing import Any

from hypermask_fast.errors import ConfigError, nearest

_EXPECTED = "expected"
_SAME = "same_as"
"""A preset of which a file is another name."""


def presets() -> list[str]:
    """Return the names of all presets, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_preset(name: str) -> dict[str, Any]:
    """Return the settings of the preset ``name`` as TOML gives them.

    Raises:
        ConfigError: There is no preset of this name.
    """
    return {table: values for table, values in _read(name).items() if table != _EXPECTED}


def expected_record(name: str) -> dict[str, Any] | None:
    """Return what the preset ``name`` was measured to reach; None where it was not.

    Raises:
        ConfigError: There is no preset of this name.
    """
    return _read(name).get(_EXPECTED)


def _read(name: str) -> dict[str, Any]:
    if name not in (names := presets()):
        raise ConfigError(
            f"preset {name!r} is unknown{nearest(name, names)}; `hypermask presets` lists all"
        )
    values = tomllib.loads(_text(name))
    other = values.get(_SAME)
    return values if other is None else _read(other)


def comment_of(name: str) -> str:
    """Return what the file of a preset says of it at its top: where its settings are from."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), _text(name).splitlines())
    return " ".join(line.lstrip("# ") for line in lines)


def _text(name: str) -> str:
    return resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
