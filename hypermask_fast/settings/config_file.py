"""Files of settings: what a run writes, or a part of it; mistakes in them have a line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.fields import Kind, checked, text_of, toml_value
from hypermask_fast.settings import flat_file
from hypermask_fast.settings.options import (
    TABLES,
    Tables,
    chosen_names,
    merged,
    options_of,
    owner_of,
)
from hypermask_fast.settings.presets import load_preset

_TABLE = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$")
_KEY = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([\w.-]+))\s*=""")


@dataclass(frozen=True)
class ConfigFile:
    """What a file gives.

    Attributes:
        preset: The preset that it names, "" for none, or None where it says nothing of one.
        values: Its tables as TOML has them; flat, in files of before there were tables.
        origin: Its path, for errors.
        text: All of it.
    """

    preset: str | None
    values: dict[str, Any]
    origin: str
    text: str

    @property
    def names_scenario(self) -> bool:
        """Whether it says what is learned."""
        chosen = self.values.get("scenario")
        return isinstance(chosen, str) or (isinstance(chosen, Mapping) and "name" in chosen)

    def over(self, base: Tables) -> dict[str, dict[str, Any]]:
        """Return tables with the settings of the file in place of theirs.

        Raises:
            ConfigError: A table or a setting is unknown, or a value is wrong.
        """
        if flat_file.is_flat(self.values):
            return merged(base, flat_file.tables(self.values, base))
        for table, given in self.values.items():
            if table not in TABLES:
                raise self._error(
                    "",
                    table,
                    f"table {table!r} is unknown{nearest(table, TABLES)}; give one of "
                    f"{', '.join(TABLES)}",
                )
            if not isinstance(given, Mapping):
                raise self._error("", table, f"{table}={given!r} is no table; write [{table}]")
        changes = with_none(self.values, base)
        chosen = {
            table: changes.get(table, {})
            if "name" in changes.get(table, {})
            else base.get(table, {})
            for table in ("method", "network")
        }
        known = options_of(*chosen_names(chosen))
        by_place = {(option.table, option.key): (name, option) for name, option in known.items()}
        for table, given in changes.items():
            for key, value in given.items():
                if (table, key) not in by_place:
                    raise self._unknown(table, key, [k for t, k in by_place if t == table])
                name, option = by_place[table, key]
                try:
                    checked(name, option.rules, option.kind, value)
                except ConfigError as error:
                    raise self._error(table, key, str(error)) from error
        return merged(base, changes)

    def _unknown(self, table: str, key: str, known: list[str]) -> ConfigError:
        owner = owner_of(key)
        elsewhere = (
            f", it is one of {owner[0]} {owner[1]!r}" if owner and not nearest(key, known) else ""
        )
        return self._error(
            table,
            key,
            f"setting {key!r} of [{table}] is unknown{nearest(key, known)}{elsewhere}; remove or "
            "rename it",
        )

    def _error(self, table: str, key: str, message: str) -> ConfigError:
        line = line_of(self.text, table, key)
        return ConfigError(f"{self.origin}{f', line {line}' if line else ''}: {message}")


def line_of(text: str, table: str, key: str) -> int | None:
    """Return the line, counted from 1, where TOML gives a key of a table; None where not found.

    Args:
        text: The file.
        table: The table; "" for what stands in none, and for the tables themselves.
        key: The key, or the table.
    """
    present = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = _TABLE.match(line)
        if header:
            present = header[1].strip("\"'")
            if not table and present.partition(".")[0] == key:
                return number
            continue
        found = _KEY.match(line)
        name = next(filter(None, found.groups()), "") if found else ""
        full = f"{present}.{name}" if present else name
        if full == (f"{table}.{key}" if table else key):
            return number
    return None


def read(path: str | Path) -> ConfigFile:
    """Read a file of settings: one that a run has written, or some of its tables.

    Raises:
        ConfigError: It cannot be read, is no TOML, or names a preset that is none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return parsed(text, str(path))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--config {path} cannot be read ({reason}); give a TOML file of settings, such as the "
            "config.toml of a run"
        ) from error


def parsed(text: str, origin: str) -> ConfigFile:
    """Return the settings of TOML text; `origin` tells where it is from."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"settings cannot be read from {origin} ({error}); give a TOML file, or its text"
        ) from error
    given = values.pop("preset", None)
    preset = None if given is None else checked("preset", {}, Kind(str), given)
    if preset:
        load_preset(preset)
    return ConfigFile(preset, values, origin, text)


def with_none(values: Mapping[str, Any], base: Tables) -> dict[str, dict[str, Any]]:
    """Return the tables of a TOML file with None in place of the string "none"."""
    result = {table: dict(given) for table, given in values.items()}
    chosen = {table: {**base.get(table, {}), **result.get(table, {})} for table in TABLES}
    for option in options_of(*chosen_names(chosen)).values():
        given = result.get(option.table, {})
        if None in option.kind.words and given.get(option.key) == "none":
            given[option.key] = None
    return result


def annotated(tables: Tables, preset: str) -> str:
    """Return settings as TOML with a comment where they differ from what they started from.

    Args:
        tables: All settings, as `RunConfig.tables` gives them.
        preset: What they started from; "": the defaults.
    """
    base = load_preset(preset) if preset else {}
    known = options_of(*chosen_names(tables))
    whose = f"preset {preset}" if preset else "default"
    parts = [f"preset = {toml_value(preset)}\n"]
    for table, values in tables.items():
        names = {option.key: option for option in known.values() if option.table == table}
        parts.append(f"\n[{table}]\n")
        for key, value in values.items():
            before = base.get(table, {}).get(key, names[key].default)
            before = tuple(before) if isinstance(before, list) else before
            note = "" if before == value else f"  # {whose}: {text_of(before) or 'empty'}"
            parts.append(f"{key} = {toml_value(value)}{note}\n")
    return "".join(parts)
