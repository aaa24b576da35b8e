"""The command ``hypermask resume``: continue a run, or several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hypermask_fast.commands.options import CORES, add_console, add_jobs, add_memory, memory_bytes
from hypermask_fast.commands.printing import show, show_all, show_comparison, show_sweep
from hypermask_fast.commands.torchrun import one_run
from hypermask_fast.errors import ConfigError

HELP = "continue a run, or several"
OPTIONS = ("--allow-changes", "--jobs", "--quiet", "--plain", "--memory-gib")
"""What the command takes beside the folder."""


def add_allow_changes(parser: argparse.ArgumentParser) -> None:
    """Add ``--allow-changes``."""
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="go on with settings in config.toml that were changed, and record them",
    )


def add_arguments(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Add the options of the command, given the words after it."""
    parser.add_argument(
        "run",
        type=Path,
        help="folder of the run, of those of several seeds, of a comparison or of a search",
    )
    add_allow_changes(parser)
    add_jobs(parser, f"of several seeds or a search: {CORES}; of a comparison: 1")
    add_console(parser)
    add_memory(parser)


def run(options: argparse.Namespace) -> int:
    """Continue, print, and return the exit status: 2 where one of several runs failed."""
    from hypermask_fast.runs import run
    from hypermask_fast.studies import comparison, seeds, sweep

    memory = memory_bytes(options)
    is_sweep = sweep.holds_sweep(options.run)
    is_comparison = comparison.holds_comparison(options.run)
    is_several = is_sweep or is_comparison or seeds.holds_seeds(options.run)
    one_run(not is_several, str(options.run))
    if is_sweep or is_comparison:
        if options.allow_changes:
            what = "search" if is_sweep else "comparison"
            raise ConfigError(
                f"--allow-changes is for runs, and {options.run} holds a {what}, whose runs "
                "have the same settings; leave it out"
            )
        if is_sweep:
            made = sweep.resume(options.run, jobs=options.jobs, memory=memory)
            return show_sweep(made, options.run)
        found = comparison.resume(options.run, memory=memory, jobs=options.jobs or 1)
        return show_comparison(found, options.run)
    how = {"memory": memory, "allow_changes": options.allow_changes}
    if seeds.holds_seeds(options.run):
        make = partial(seeds.resume, options.run)
        return show_all(make, options.run, jobs=options.jobs, **how)
    if options.jobs is not None:
        raise ConfigError(f"--jobs {options.jobs} is for several runs, and {options.run} is one")
    show(run.resume(options.run, **how))
    return 0
