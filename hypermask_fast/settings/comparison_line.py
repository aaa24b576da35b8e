"""The settings of a comparison as options of the command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import text_of
from hypermask_fast.inference.registry import scores
from hypermask_fast.methods import registry
from hypermask_fast.settings import config_file
from hypermask_fast.settings.command_line import CONFIG_HELP, USAGE, Parser, default_text
from hypermask_fast.settings.comparison import ComparisonConfig, known_options
from hypermask_fast.settings.config_file import ConfigFile
from hypermask_fast.settings.options import chosen_names, options_of
from hypermask_fast.settings.presets import load_preset

# What the names of settings begin with in a namespace, which holds a command's own options too.
_SETTING = "setting "
PRESET_NAMES = ("--preset", "--benchmark")
"""Options of one meaning."""
# Of which a run has one, so that the line's replaces that of a file.
_ONE_OF = ("steps", "epochs")


def _chosen(
    prog: str, words: Sequence[str], preset: str
) -> tuple[str, Sequence[str], dict[str, str], ConfigFile | None]:
    """Return the preset, the methods and the networks that a command line chooses, and its file."""
    first = Parser(prog=prog, add_help=False, argument_default=argparse.SUPPRESS)
    networks = ["network", *(f"{method}.network" for method in registry.methods())]
    first.add_argument(*PRESET_NAMES, dest="preset")
    for name in ("methods", "config", *networks):
        first.add_argument(f"--{name}", dest=name)
    given = vars(first.parse_known_args(words)[0])
    twice = [n for n in PRESET_NAMES if any(word.split("=")[0] == n for word in words)]
    if len(twice) > 1:
        raise ConfigError(f"{' and '.join(twice)} are names of one setting; give one of the two")
    named = [name.strip() for name in given.get("methods", "").split(",")]
    methods = [name for name in registry.methods() if name in named] or registry.methods()
    file = config_file.read(given["config"]) if "config" in given else None
    preset = given.get("preset") or (file and file.preset) or preset
    names = {n: given[n] for n in networks if n in given}
    if file is not None:
        names = {k: v for k, v in _options_of(file, preset).items() if k in networks} | names
    return preset, methods, names, file


def _options_of(file: ConfigFile, preset: str) -> dict[str, str]:
    """Return the settings of a file as texts, by the names of a comparison's options.

    Those of the method that it names are that method's, all others are of each method that has
    such a setting.
    """
    tables = file.over(load_preset(preset))
    method, network = chosen_names(tables)
    says_method = "name" in file.values.get("method", {})
    known = {(o.table, o.key): name for name, o in options_of(method, network).items()}
    found = {}
    for table, given in file.values.items():
        for key, value in given.items():
            if (table, key) == ("method", "name"):
                continue
            name = known[table, key]
            full = f"{method}.{name}" if table == "method" and says_method else name
            found[full] = text_of(tuple(value) if isinstance(value, list) else value)
    return found


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str], *, preset: str) -> None:
    """Add the options of a comparison, and one for each setting that the runs of a method have.

    Args:
        parser: What gets the options, in a group for each table.
        words: The command line, which chooses the methods and the preset.
        preset: The preset where it chooses none.

    Raises:
        ConfigError: The preset or a network is unknown.
    """
    chosen, methods, networks, file = _chosen(parser.prog, words, preset)
    parser.usage = USAGE
    parser.set_defaults(config_file=file)
    add = parser.add_argument
    add("--config", metavar="FILE", help=CONFIG_HELP)
    add(*PRESET_NAMES, default=chosen, metavar="NAME", help=f"what is learned [{chosen}]")
    all_methods, all_scores = ",".join(registry.methods()), ",".join(scores())
    add("--methods", default="", metavar="NAMES", help=f"of {all_methods} [all]")
    add("--seeds", type=int, default=5, metavar="N", help="runs of each, of as many seeds [5]")
    text = f"infer the tasks of test images by each of these: {all_scores} [none]"
    add("--infer", default="", metavar="SCORES", help=text)
    add("--calibrate", action="store_true", help="tell what is inferred after calibration")
    text = "validation, or train where a method's runs hold none out [validation]"
    add("--calibrate-on", default="validation", metavar="SPLIT", help=text)
    text = (
        "sizes of the hypernetworks: what each method trains beside the target network's own "
        "parameters is at most so many times those [the settings' sizes]"
    )
    add("--budget-params", metavar="1.0x", help=text)
    groups: dict[str, argparse._ArgumentGroup] = {}
    shown: dict[str, tuple[argparse.Action, str, set[str]]] = {}
    for method in methods:
        known, tables = known_options(method, chosen, networks)
        for name, option in known.items():
            if option.table not in groups:
                groups[option.table] = parser.add_argument_group(option.table)

            def added(full: str, group: argparse._ArgumentGroup, **how: Any) -> argparse.Action:
                word, dest = f"--{full.replace('_', '-')}", f"{_SETTING}{full}"
                return group.add_argument(word, dest=dest, default=argparse.SUPPRESS, **how)

            group = groups[option.table]
            added(f"{method}.{name}", group, help=argparse.SUPPRESS)
            if name not in shown:
                action = added(name, group, metavar=option.kind.metavar)
                shown[name] = action, option.rules["help"], set()
            shown[name][2].add(default_text(option, tables))
    for action, text, defaults in shown.values():
        default = next(iter(defaults)) if len(defaults) == 1 else "each method's"
        action.help = f"{text} [{default}]".replace("%", "%%")


def from_arguments(namespace: argparse.Namespace) -> ComparisonConfig:
    """Return the settings of a command line.

    Raises:
        ConfigError: A text cannot be converted, or a value is wrong.
    """
    given = vars(namespace)
    options = {k.removeprefix(_SETTING): v for k, v in given.items() if k.startswith(_SETTING)}
    file = given.get("config_file")
    if file is not None:
        of_file = _options_of(file, given["preset"])
        if any(name.rpartition(".")[2] in _ONE_OF for name in options):
            of_file = {k: v for k, v in of_file.items() if k not in _ONE_OF}
        options = of_file | options
    return ComparisonConfig.from_preset(
        given["preset"],
        given["methods"],
        options,
        as_text=True,
        **{name: given[name] for name in ("seeds", "infer", "calibrate", "calibrate_on")},
    )


def budget_of(namespace: argparse.Namespace) -> float | None:
    """Return the budget of a command line, such as 1.0 for ``1.0x``; None where it gives none.

    Raises:
        ConfigError: It is no number above 0.
    """
    text: str | None = namespace.budget_params
    if text is None:
        return None
    try:
        factor = float(text.removesuffix("x"))
    except ValueError:
        factor = 0.0
    if not 0 < factor < math.inf:
        raise ConfigError(
            f"budget-params={text!r} is no multiple of the target network's parameters; give one "
            "above 0, such as 1.0x"
        )
    return factor
