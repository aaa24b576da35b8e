"""The command ``hypermask train``: train a sequence of tasks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hypermask_fast.commands import resume
from hypermask_fast.commands.options import (
    CORES,
    DEFAULT_PRESET,
    add_console,
    add_jobs,
    add_settings,
    beside,
    memory_bytes,
)
from hypermask_fast.commands.printing import new_folder, show, show_all
from hypermask_fast.commands.torchrun import as_the_first, is_several, one_run
from hypermask_fast.errors import ConfigError
from hypermask_fast.settings.command_line import from_arguments
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.config_file import annotated
from hypermask_fast.training.distributed.launched import world_size

if TYPE_CHECKING:
    from hypermask_fast.finished.scaling import Reference

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
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in a folder, with its own settings, as `hypermask resume` does",
    )
    resume.add_allow_changes(parser)
    parser.add_argument(
        "--global-batch",
        metavar="INT",
        help="another name of --batch-size: examples in a training step, of all processes together",
    )
    parser.add_argument(
        "--against-run",
        type=Path,
        metavar="RUN",
        help="with torchrun: a run of one process with the same settings, which the scaling "
        "efficiency is taken from",
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
    parser.set_defaults(words=tuple(words))


def _go_on(options: argparse.Namespace) -> int:
    """Do what the command resume does."""
    other = beside(options.words, ("--resume", *resume.OPTIONS))
    if other is not None:
        raise ConfigError(
            f"{other} is of a new run, and {options.resume} goes on with its own settings; leave "
            f"it out, or change {options.resume / 'config.toml'} and give --allow-changes"
        )
    options.run = options.resume
    return resume.run(options)


def _take_global_batch(options: argparse.Namespace) -> None:
    """Let ``--global-batch`` be the batch size."""
    if options.global_batch is None:
        return
    if "batch_size" in options:
        raise ConfigError(
            f"--global-batch {options.global_batch} and --batch-size {options.batch_size} are "
            "names of one setting; give one of them"
        )
    options.batch_size = options.global_batch


def _reference(path: Path | None, config: RunConfig) -> Reference | None:
    """Return the run of one process that ``--against-run`` names."""
    if path is None:
        return None
    from hypermask_fast.finished.scaling import Reference

    if not is_several():
        raise ConfigError(
            f"--against-run {path} is for several processes; start them by torchrun, or leave it "
            "out"
        )
    return Reference(path, config, world_size())


def run(options: argparse.Namespace) -> int:
    """Train, print, and return the exit status: 2 where one of several runs failed."""
    from hypermask_fast.runs import run
    from hypermask_fast.studies import seeds

    if options.resume is not None:
        return _go_on(options)
    if options.allow_changes:
        raise ConfigError(
            "--allow-changes is for a run that goes on; give --resume RUN, or leave it out"
        )
    _take_global_batch(options)
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
        if options.against_run is not None:
            raise ConfigError(
                f"--against-run {options.against_run} is for one run of several processes; leave "
                "out --seeds"
            )
        make = partial(seeds.train, config, out, options.seeds)
        return show_all(make, out, memory=memory, jobs=options.jobs)
    if options.jobs is not None:
        raise ConfigError(f"--jobs {options.jobs} is for runs of several seeds; give --seeds too")
    reference = _reference(options.against_run, config)
    made = run.train(config, out, memory=memory)
    show(made)
    if reference is not None:
        print(reference.line(made.folder))
    return 0
