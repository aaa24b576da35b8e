"""The command line: what finds a command's module, and its exit status."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from typing import Protocol

from hypermask_fast.commands import (
    bench,
    compare,
    compare_runs,
    demo,
    doctor,
    eval,
    export,
    metrics,
    plan,
    plot,
    presets,
    resume,
    sweep,
    train,
    verify,
)
from hypermask_fast.commands.torchrun import prints, several_processes
from hypermask_fast.commands.waiting import sleep_soon
from hypermask_fast.console.streams import lasting_streams
from hypermask_fast.console.terminal import colored, shown_as
from hypermask_fast.console.warned import plain_warnings
from hypermask_fast.errors import ConfigError, HypermaskError, nearest
from hypermask_fast.factories import folder_importable
from hypermask_fast.settings.command_line import Parser, unknown_option


class _Command(Protocol):
    """A module of :mod:`hypermask_fast.commands`."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
        """Add the options of the command, given the words after it."""

    def run(self, options: argparse.Namespace) -> int:
        """Do it, print, and return the exit status."""


_COMMANDS: dict[str, _Command] = {
    "demo": demo,
    "train": train,
    "presets": presets,
    "compare": compare,
    "sweep": sweep,
    "plan": plan,
    "bench": bench,
    "resume": resume,
    "eval": eval,
    "export": export,
    "verify": verify,
    "plot": plot,
    "metrics": metrics,
    "compare-runs": compare_runs,
    "doctor": doctor,
}


_START = """\
Continual learning with hypernetwork-generated masks.

hypermask demo
    five small tasks, in a minute
hypermask train --preset split-mnist
    published settings; `presets` lists them
hypermask compare --methods hypermask,hnet
    methods beside each other

`hypermask help` lists all commands,
`hypermask help train` one's options."""

_STATUSES = (
    "Exit status: 0, done; 1, verify or doctor found something wrong, or compared runs differ; 2, "
    "an error, or a run of a comparison failed; 128 + n, signal n stopped it (130: Ctrl-C), with a "
    "checkpoint where a run had begun."
)


def _versions() -> str:
    """Return the package's version and those of what its numbers depend on, a line each."""
    found = [("python", platform.python_version())]
    for name in ("torch", "triton"):
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    import hypermask_fast

    found.insert(0, ("hypermask_fast", hypermask_fast.__version__))
    return "\n".join(f"{name} {version}" for name, version in found)


def _options(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; only the command that it gives makes its options."""
    parser = Parser(
        prog="hypermask",
        description="Continual learning with hypernetwork-generated masks.",
        epilog=_STATUSES,
    )
    parser.add_argument(
        "--version", action="store_true", help="versions of the package, Python, torch and triton"
    )
    commands = parser.add_subparsers(
        dest="command", required=True, parser_class=Parser, title="commands", metavar="COMMAND"
    )
    for name, command in _COMMANDS.items():
        made = commands.add_parser(name, help=command.HELP)
        made.set_defaults(parser=made)
        if words and words[0] == name:
            made.epilog = _STATUSES
            command.add_arguments(made, words[1:])
    if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
        raise ConfigError(
            f"command {words[0]!r} is unknown{nearest(words[0], _COMMANDS)}; see `hypermask --help`"
        )
    options, left_over = parser.parse_known_args(words)
    if left_over:
        raise unknown_option(left_over[0], options.parser)
    return options


def _mode(options: argparse.Namespace) -> str:
    given = [mode for mode in ("quiet", "plain") if getattr(options, mode, False)]
    return given[0] if given else "auto"


def _run(words: Sequence[str]) -> int:
    if not words:
        print(_START, file=sys.stderr)
        return 2
    if words[0] == "help":
        words = [*words[1:2], "--help"]
    if words[0] == "--version":
        print(_versions())
        return 0
    try:
        with plain_warnings(), several_processes(words):
            options = _options(words)
            with shown_as(_mode(options) if prints() else "quiet"):
                return _COMMANDS[options.command].run(options)
    except HypermaskError as error:
        print(f"{colored('hypermask', 'red', sys.stderr)}: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0; 2 after an error; 128 + n after signal n.

    A standard stream that is closed, or that nobody reads any more, changes nothing else.
    """
    sleep_soon()
    with lasting_streams() as output, folder_importable():
        status = _run(sys.argv[1:] if arguments is None else arguments)
        output.flush()
        if output.failure is not None:
            print(
                f"hypermask: cannot print: {output.failure.strerror}; free space, or print "
                "elsewhere",
                file=sys.stderr,
            )
        return status if output.failure is None else status or 2
