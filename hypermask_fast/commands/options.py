"""Options that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence

from hypermask_fast.errors import ConfigError
from hypermask_fast.settings.command_line import add_arguments

DEFAULT_PRESET = "split-digits"
CORES = "one for each core, as many as fit the memory; on CUDA 1"
"""What ``--jobs`` is for runs of several seeds."""


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Add ``--memory-gib``."""
    parser.add_argument(
        "--memory-gib",
        type=float,
        metavar="GIB",
        help="memory of the device to count on [what it has left]",
    )


def add_console(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet`` and ``--plain``."""
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--quiet", action="store_true", help="print the results or errors alone, and no warnings"
    )
    modes.add_argument(
        "--plain", action="store_true", help="print lines, as into a file, also in a terminal"
    )


def memory_bytes(options: argparse.Namespace) -> int | None:
    """Return what ``--memory-gib`` gives, in bytes.

    Raises:
        ConfigError: It is out of range.
    """
    gib = options.memory_gib
    if gib is None:
        return None
    if not 0 < gib <= 2**53:
        raise ConfigError(f"memory-gib={gib} is out of range; give more than 0, at most {2**53}")
    return int(gib * 2**30)


def beside(words: Sequence[str], allowed: Collection[str]) -> str | None:
    """Return the first option of a command line that is none of those allowed; None: there is none.

    Args:
        words: The command line.
        allowed: Options, with their hyphens.
    """
    names = (word.partition("=")[0] for word in words if word.startswith("--"))
    return next((name for name in names if name not in allowed), None)


def add_jobs(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--jobs``; ``default`` says what holds without it."""
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="J",
        help=f"runs at once, each in a process with its part of the threads [{default}]",
    )


def add_settings(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the settings of a run, given the words after the command."""
    add_memory(parser)
    add_arguments(parser, words, preset=DEFAULT_PRESET)
