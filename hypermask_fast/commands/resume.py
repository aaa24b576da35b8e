"""The command ``hypermask resume``: continue a run, or several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hypermask_fast.commands.options import add_console, add_memory, memory_bytes
from hypermask_fast.commands.printing import show, show_all, show_comparison
from hypermask_fast.errors import ConfigError

HELP = "continue a run, or several"


def add_arguments(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Add the options of the command, given the words after it."""
    parser.add_argument(
        "run", type=Path, help="folder of the run, of those of several seeds, or of a comparison"
    )
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="go on with settings in config.toml that were changed, and record them",
    )
    add_console(parser)
    add_memory(parser)


def run(options: argparse.Namespace) -> int:
    """Continue, print, and return the exit status: 2 where a run of a comparison failed."""
    from hypermask_fast.runs import comparison, run, seeds

    memory = memory_bytes(options)
    if comparison.holds_comparison(options.run):
        if options.allow_changes:
            raise ConfigError(
                f"--allow-changes is for runs, and {options.run} holds a comparison, whose runs "
                "have the same settings; leave it out"
            )
        return show_comparison(comparison.resume(options.run, memory=memory), options.run)
    how = {"memory": memory, "allow_changes": options.allow_changes}
    if seeds.holds_seeds(options.run):
        show_all(seeds.resume(options.run, **how))
    else:
        show(run.resume(options.run, **how))
    return 0
