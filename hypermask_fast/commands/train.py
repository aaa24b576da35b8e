"""The command ``hypermask train``: train a sequence of tasks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hypermask_fast.commands.options import (
    CORES,
    DEFAULT_PRESET,
    add_console,
    add_jobs,
    add_settings,
    memory_bytes,
)
from hypermask_fast.commands.printing import new_folder, show, show_all
from hypermask_fast.commands.torchrun import as_the_first, one_run
from hypermask_fast.errors import ConfigError
from hypermask_fast.settings.command_line import from_arguments
from hypermask_fast.settings.config_file import annotated

HELP = "train a sequence of tasks"


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the options of the command, given the words after it."""
    parser.description = (
        f"Train a sequence of tasks. Without options: --preset {DEFAULT_PRESET}. The settings are "
        "those of the chosen method and network; in brackets: their values where none is given. "
        "--network and --scenario take MODULE:FUNCTION too, of a module in the current folder or "
        "on Python's path: FUNCTION(input_shape, num_outputs) returns an nn.Module, and "
        "FUNCTION() a Scenario, a list of Tasks, or a dict of (train, test) by task name; "
        "parameters of these names, and data_dir and seed of the latter, get the run's values, "
        "others those of --network-options and --scenario-options."
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run [runs/PRESET-TIME-LETTERS]"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="runs with seeds SEED to SEED+N-1, in folders seed-S of --out [1]",
    )
    add_jobs(parser, f"with --seeds: {CORES}")
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the settings as a file for --config, and train nothing",
    )
    add_console(parser)
    add_settings(parser, words)


def run(options: argparse.Namespace) -> int:
    """Train, print, and return the exit status: 2 where one of several runs failed."""
    from hypermask_fast.runs import run
    from hypermask_fast.studies import seeds

    config, memory = from_arguments(options), memory_bytes(options)
    if options.print_config:
        print(annotated(config.tables(), config.preset), end="")
        return 0
    out = options.out or new_folder(config.preset or config.scenario.name)
    out = as_the_first(out)
    one_run(options.seeds == 1, "--seeds")
    if options.seeds < 1:
        raise ConfigError(f"seeds={options.seeds} is out of range; give at least 1")
    if options.seeds > 1:
        make = partial(seeds.train, config, out, options.seeds)
        return show_all(make, out, memory=memory, jobs=options.jobs)
    if options.jobs is not None:
        raise ConfigError(f"--jobs {options.jobs} is for runs of several seeds; give --seeds too")
    show(run.train(config, out, memory=memory))
    return 0
