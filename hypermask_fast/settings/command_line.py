"""The settings of a run as options of the command line, those of its method and network only."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.fields import choices_text, parsed, text_of
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.options import (
    Option,
    chosen_names,
    merged,
    nested,
    options_of,
    owner_of,
)
from hypermask_fast.settings.presets import load_preset

_CHOOSING = ("preset", "scenario", "method", "network")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ConfigErrors, and which takes no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def default_text(option: Option, tables: dict[str, dict[str, Any]]) -> str:
    """Return what an option's setting is where tables are given, as the command line shows it."""
    value = tables.get(option.table, {}).get(option.key, option.default)
    return text_of(tuple(value) if isinstance(value, list) else value) or "none"


def add_arguments(
    parser: argparse.ArgumentParser, words: Sequence[str] = (), *, preset: str = ""
) -> None:
    """Add one option for each setting; options that are not given leave no trace.

    Args:
        parser: What gets the options, in a group for each table.
        words: The command line, which chooses the method and the network whose options these are,
            and the preset whose values are shown as defaults.
        preset: The preset where the words choose neither one nor a scenario.

    Raises:
        ConfigError: The preset, the method or the network is unknown.
    """
    first = Parser(prog=parser.prog, add_help=False, argument_default=argparse.SUPPRESS)
    for name in _CHOOSING:
        first.add_argument(f"--{name}")
    given = vars(first.parse_known_args(words)[0])
    if preset and not {"preset", "scenario"} & given.keys():
        parser.set_defaults(preset=preset)
        given["preset"] = preset
    preset = given.pop("preset", "")
    base = load_preset(preset) if preset else {}
    tables = merged(base, nested(given, base))
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, option in options_of(*chosen_names(tables)).items():
        title = option.table or "preset"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        default = preset if name == "preset" else default_text(option, tables)
        text = option.rules["help"]
        if "choices" in option.rules:
            text += f" ({choices_text(option.rules)})"
        groups[title].add_argument(
            f"--{name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            nargs="?" if option.kind.base is bool else None,
            const="true" if option.kind.base is bool else None,
            metavar=option.kind.metavar,
            help=f"{text} [{default or 'none'}]".replace("%", "%%"),
        )


def from_arguments(namespace: argparse.Namespace) -> RunConfig:
    """Return the settings of a command line: its preset, if any, changed by its other options.

    Raises:
        ConfigError: A text cannot be converted, or a value is wrong.
    """
    given = vars(namespace)
    preset = given.get("preset", "")
    base = load_preset(preset) if preset else {}
    choices: dict[str, Any] = {k: given[k] for k in ("method", "network") if k in given}
    known = options_of(*chosen_names(merged(base, nested(choices, base))))
    options = {
        name: parsed(name, option.kind, given[name])
        for name, option in known.items()
        if name in given and name != "preset"
    }
    return RunConfig.from_preset(preset, **options) if preset else RunConfig.from_options(**options)


def unknown_option(word: str, parser: argparse.ArgumentParser) -> ConfigError:
    """Return the error of a word of the command line that a parser did not take."""
    option, _, _ = word.partition("=")
    if not option.startswith("--"):
        return ConfigError(f"{word!r} is left over; see `{parser.prog} --help`")
    name = option[2:].replace("-", "_")
    known = parser._option_string_actions
    owner = owner_of(name)
    if "--preset" in known and f"--{name.replace('_', '-')}" not in known and owner is not None:
        return ConfigError(
            f"{option} is an option of --{owner[0]} {owner[1]}; remove it, or choose that"
        )
    return ConfigError(
        f"option {option} is unknown{nearest(option, known)}; see `{parser.prog} --help`"
    )
