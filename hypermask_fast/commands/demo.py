"""The command ``hypermask demo``: five small tasks, to see a run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from hypermask_fast.commands.options import DEFAULT_PRESET, add_console
from hypermask_fast.commands.printing import new_folder, show
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.training.progress_line import duration

HELP = "learn five small tasks, to see a run"


def add_arguments(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Add the options of the command."""
    parser.description = (
        f"Train five tasks of 8x8 digits, which are in the package, as `hypermask train --preset "
        f"{DEFAULT_PRESET}` does: in a minute on a CPU."
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder [runs/demo-TIME-LETTERS]")
    add_console(parser)


def run(options: argparse.Namespace) -> int:
    """Train, print, and return the exit status."""
    from hypermask_fast.runs import run

    begun = time.monotonic()
    out = options.out or new_folder("demo")
    show(run.train(RunConfig.from_preset(DEFAULT_PRESET), out))
    print(f"wall time: {duration(time.monotonic() - begun)}")
    return 0
