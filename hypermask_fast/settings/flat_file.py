"""Settings files of before there were tables: one list of all settings by their flat names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypermask_fast.errors import ConfigError
from hypermask_fast.settings.options import (
    TABLES,
    Tables,
    chosen_names,
    nested,
    options_of,
    owner_of,
)


def is_flat(values: Mapping[str, Any]) -> bool:
    """Return whether TOML values, apart from the preset, are such a list.

    Raises:
        ConfigError: Some are and some are not.
    """
    outside = [name for name, value in values.items() if not isinstance(value, dict)]
    if outside and len(outside) < len(values):
        name = outside[0]
        place = f"[{name}]" if name in TABLES else "the table that it belongs to"
        raise ConfigError(
            f"{name}={values[name]!r} stands outside of the tables; put it into {place}"
        )
    return bool(outside)


def tables(values: Mapping[str, Any], base: Tables) -> dict[str, dict[str, Any]]:
    """Return such settings in tables.

    They hold the options of every network, of which the chosen one's count, and ``true`` for graph
    and compile where "auto" is said now.

    Args:
        values: The settings of a file, without the preset.
        base: Tables of the preset.

    Raises:
        ConfigError: A setting is unknown.
    """
    chosen = {
        table: {"name": values.get(table, base.get(table, {}).get("name"))}
        for table in ("method", "network")
    }
    names = chosen_names({t: v for t, v in chosen.items() if v["name"] is not None})
    known = options_of(*names)
    result = {}
    for name, value in values.items():
        if name not in known and (owner_of(name) or ("",))[0] == "network":
            continue
        if name in known and value == "none" and None in known[name].kind.words:
            value = None
        if name in ("graph", "compile") and value is True:
            value = "auto"
        result[name] = value
    return nested(result, base)
