"""The command ``hypermask plan``: the memory of a run, before it starts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from hypermask_fast.commands.fitting import print_fitted
from hypermask_fast.commands.options import add_settings, memory_bytes
from hypermask_fast.settings.command_line import from_arguments

HELP = "the memory of a run, before it starts"


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the options of the command, given the words after it."""
    parser.description = (
        "Tell what memory `hypermask train` takes with the same options, and on a disk its "
        "checkpoints, without making or reading anything but what functions of your own make. The "
        "status is 2 where it does not fit."
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="plan one of N processes that train together, each with its rows of a batch, and with "
        "--shard-head of the head [1]",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")
    add_settings(parser, words)


def run(options: argparse.Namespace) -> int:
    """Plan, print, and return the exit status."""
    from hypermask_fast.planning.plan import plan

    memory = memory_bytes(options)
    found = plan(from_arguments(options), memory=memory, processes=options.processes)
    if options.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_fitted(found.table())
    found.require()
    found.require_resumable()
    return 0
