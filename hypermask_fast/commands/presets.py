"""The command ``hypermask presets``: the named settings to start from."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from hypermask_fast.console.terminal import width_of
from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.methods import registry
from hypermask_fast.settings.config import RunConfig, presets
from hypermask_fast.settings.presets import comment_of

HELP = "the named settings to start from"
_FOR_A_LINE = 140


class _Preset(NamedTuple):
    name: str
    method: str
    tasks: str
    network: str
    length: str
    comment: str


def add_arguments(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Add the options of the command."""
    parser.description = (
        "List the presets: method, tasks, network, and steps or epochs of a task. "
        "`hypermask train --preset NAME --print-config` prints all settings of one."
    )
    parser.add_argument("--method", metavar="NAME", help="those of one method [all]")


def _found(name: str) -> _Preset:
    config = RunConfig.from_preset(name)
    training = config.training
    number, unit = (training.steps, "step") if training.steps else (training.epochs, "epoch")
    length = f"{number} {unit}{'' if number == 1 else 's'}"
    return _Preset(
        name,
        config.method_name,
        f"{config.tasks} tasks",
        config.network.name,
        length,
        comment_of(name),
    )


def run(options: argparse.Namespace) -> int:
    """List them: a line each, or in a narrow terminal a paragraph."""
    if options.method is not None and options.method not in registry.methods():
        raise ConfigError(
            f"method={options.method!r} is unknown{nearest(options.method, registry.methods())}; "
            f"choose one of {', '.join(registry.methods())}"
        )
    found = [preset for preset in map(_found, presets()) if options.method in (None, preset.method)]
    width = width_of(sys.stdout)
    if width is None or width >= _FOR_A_LINE:
        columns = list(zip(*found, strict=True))[:-1]
        widths = [max(map(len, column)) for column in columns]
        for preset in found:
            cells = [cell.ljust(room) for cell, room in zip(preset, widths, strict=False)]
            line = "  ".join([*cells, preset.comment])
            print(line if width is None else _cut(line, width))
        return 0
    for preset in found:
        print(preset.name)
        facts = ", ".join(preset[1:-1])
        for text in (facts, preset.comment):
            print(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  "))
    return 0


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 3].rstrip(" .,") + "..."
