"""The settings of a run as options of the command line, those of its method and network only."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.fields import choices_text, parsed, text_of
from hypermask_fast.settings import config_file
from hypermask_fast.settings.config import RunConfig, from_tables
from hypermask_fast.settings.config_file import ConfigFile
from hypermask_fast.settings.options import (
    Option,
    chosen_names,
    merged,
    nested,
    options_of,
    owner_of,
)
from hypermask_fast.settings.presets import load_preset

_CHOOSING = ("preset", "scenario", "method", "network", "config")


USAGE = "%(prog)s [OPTION ...]"  # the options are too many for a usage line
CONFIG_HELP = (
    "settings: the config.toml of a run, or some of its tables; options on the line change them"
)


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
    parser.add_argument("--config", default=argparse.SUPPRESS, metavar="FILE", help=CONFIG_HELP)
    file = config_file.read(given.pop("config")) if "config" in given else None
    preset, base = _base_of(given, file, preset)
    parser.usage = USAGE
    if preset:
        parser.set_defaults(preset=preset)
    if file is not None:
        parser.set_defaults(config_file=file)  # a pipe is read once
    given.pop("preset", None)
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
    preset, base = _base_of(given, given.get("config_file"), "")
    choices: dict[str, Any] = {k: given[k] for k in ("method", "network") if k in given}
    known = options_of(*chosen_names(merged(base, nested(choices, base))))
    options = {
        name: parsed(name, option.kind, given[name])
        for name, option in known.items()
        if name in given and name != "preset"
    }
    return from_tables(preset, merged(base, nested(options, base)))


def _base_of(
    given: Mapping[str, Any], file: ConfigFile | None, preset: str
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the preset, and the tables that options of the command line change.

    Args:
        given: Those options, which may name a preset or a scenario.
        file: Of ``--config``.
        preset: The preset where nothing chooses one, or what is learned.
    """
    chosen: str = given.get("preset", "")
    if "preset" not in given:
        says_what = "scenario" in given or (file is not None and file.names_scenario)
        told = None if file is None else file.preset
        chosen = (told or "") if told or says_what else preset
    base = load_preset(chosen) if chosen else {}
    return chosen, base if file is None else file.over(base)


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
