"""The command ``hypermask sweep``: try settings, and choose by validation accuracy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hypermask_fast.commands.options import CORES, add_console, add_jobs, add_settings, memory_bytes
from hypermask_fast.commands.printing import new_folder, show_sweep
from hypermask_fast.settings.command_line import from_arguments
from hypermask_fast.settings.sweep import SAMPLERS, SweepConfig, grid_of

HELP = "try settings, and choose by validation accuracy"


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the options of the command, given the words after it."""
    parser.description = (
        "Train with each combination of --grid, or with --trials of them that a sampler chooses, "
        "and compare them by the mean validation accuracy of the learned tasks. A trial that is "
        "below the median of those that ended, after the same task, is ended early. The same "
        "command again, or `hypermask resume`, goes on with one that was stopped. It needs Optuna: "
        "pip install 'hypermask_fast[sweep]'."
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the search, with runs in trial-N/seed-S [runs/sweep-PRESET-TIME-LETTERS]",
    )
    parser.add_argument(
        "--grid",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="settings to try, and their values; lists have a semicolon between them",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="runs of each trial, SEED and up [1]"
    )
    parser.add_argument(
        "--trials", type=int, metavar="N", help="how many, with another sampler than grid"
    )
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help=f"what chooses them ({', '.join(SAMPLERS)}) [grid; with --trials: tpe]",
    )
    add_jobs(parser, CORES)
    add_console(parser)
    add_settings(parser, words)


def run(options: argparse.Namespace) -> int:
    """Search, print, and return the exit status: 2 where no trial ended."""
    from hypermask_fast.studies.sweep import sweep

    base, memory = from_arguments(options), memory_bytes(options)
    config = SweepConfig(
        base=base,
        grid=grid_of(base, options.grid),
        seeds=options.seeds,
        sampler=options.sampler or ("grid" if options.trials is None else "tpe"),
        trials=options.trials,
    )
    out = options.out or new_folder(f"sweep-{base.preset or base.scenario.name}")
    return show_sweep(sweep(config, out, jobs=options.jobs, memory=memory), out)
