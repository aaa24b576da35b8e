"""The command ``hypermask compare``: train several methods, and compare them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hypermask_fast.commands import compare_runs
from hypermask_fast.commands.options import (
    DEFAULT_PRESET,
    add_console,
    add_jobs,
    add_memory,
    beside,
    memory_bytes,
)
from hypermask_fast.commands.printing import new_folder, show_comparison
from hypermask_fast.errors import ConfigError
from hypermask_fast.settings import comparison_line

HELP = "train several methods, and compare them; or tell whether two runs are the same"


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the options of the command, given the words after it."""
    parser.description = (
        "Train each method with each seed, and make tables and figures of what they reach. A "
        "method takes the settings of the preset METHOD-PRESET where there is one of the same "
        "tasks, else PRESET's if that is of the method, else PRESET's scenario, network and "
        "training with its own defaults. --steps 9 changes the runs of all methods that have the "
        "setting, --hnet.steps 9 those of one. The same command again goes on with a comparison "
        "that was stopped. Given two folders of runs instead: tell whether they are the same bit "
        "by bit, as compare-runs does."
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="two folders of runs, to be compared"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the comparison, with runs in METHOD/seed-S [runs/compare-PRESET-TIME-"
        "LETTERS]",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_jobs(parser, "1")
    add_console(parser)
    add_memory(parser)
    comparison_line.add_arguments(parser, words, preset=DEFAULT_PRESET)
    parser.set_defaults(words=tuple(words))


def _two_runs(options: argparse.Namespace) -> int:
    """Do what the command compare-runs does."""
    given = ", ".join(map(str, options.runs))
    if len(options.runs) != 2:
        raise ConfigError(
            f"{given} is no pair of runs; give the folders of two, or --methods to train"
        )
    other = beside(options.words, ("--json", "--quiet", "--plain"))
    if other is not None:
        raise ConfigError(
            f"{other} is for methods that are trained, and {given} are runs to compare; leave it "
            "out"
        )
    options.a, options.b = options.runs
    return compare_runs.run(options)


def run(options: argparse.Namespace) -> int:
    """Train, print, and return the exit status: 2 where a run failed.

    Of two runs that are compared, 1 where they differ.
    """
    if options.runs:
        return _two_runs(options)
    from hypermask_fast.studies import budget, comparison

    config, memory = comparison_line.from_arguments(options), memory_bytes(options)
    factor = comparison_line.budget_of(options)
    if factor is not None:
        config = budget.within_budget(config, factor)
    out = options.out or new_folder(f"compare-{options.preset}")
    found = comparison.compare(config, out, memory=memory, jobs=options.jobs or 1)
    return show_comparison(found, out, options.json)
