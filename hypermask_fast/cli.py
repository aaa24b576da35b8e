"""The command line: what finds a command's module, and its exit status."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from hypermask_fast.commands import compare, doctor, eval, export, plan, resume, train, verify
from hypermask_fast.commands.torchrun import prints, several_processes
from hypermask_fast.errors import HypermaskError
from hypermask_fast.factories import folder_importable
from hypermask_fast.runs.console import lasting_streams
from hypermask_fast.settings.command_line import Parser, unknown_option


class _Command(Protocol):
    """A module of :mod:`hypermask_fast.commands`."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
        """Add the options of the command, given the words after it."""

    def run(self, options: argparse.Namespace) -> int:
        """Do it, print, and return the exit status."""


_COMMANDS: dict[str, _Command] = {
    "train": train,
    "compare": compare,
    "plan": plan,
    "resume": resume,
    "eval": eval,
    "export": export,
    "verify": verify,
    "doctor": doctor,
}


def _options(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; only the command that it gives makes its options."""
    parser = Parser(
        prog="hypermask", description="Continual learning with hypernetwork-generated masks."
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name, command in _COMMANDS.items():
        made = commands.add_parser(name, help=command.HELP)
        made.set_defaults(parser=made)
        if words and words[0] == name:
            command.add_arguments(made, words[1:])
    options, left_over = parser.parse_known_args(words)
    if left_over:
        raise unknown_option(left_over[0], options.parser)
    return options


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as a line of the command, without the place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: (
            print(f"hypermask: warning: {message}", file=sys.stderr) if prints() else None
        )
        yield


def _run(arguments: Sequence[str]) -> int:
    try:
        with _plain_warnings(), several_processes(arguments):
            options = _options(arguments)
            return _COMMANDS[options.command].run(options)
    except HypermaskError as error:
        print(f"hypermask: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0; 2 after an error; 128 + n after signal n.

    A standard stream that is closed, or that nobody reads any more, changes nothing else.
    """
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
