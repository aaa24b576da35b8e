"""The command ``hypermask doctor``: versions, devices and a self-test."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

HELP = "versions, devices and a self-test"


def add_arguments(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Add the options of the command, given the words after it."""
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="check every Triton kernel on each CUDA device, as their first use does once",
    )


def run(options: argparse.Namespace) -> int:
    """Examine this machine, print, and return the exit status."""
    from hypermask_fast.doctor import examine

    return examine(sys.stdout, kernels=options.kernels)
