"""The command ``hypermask compare-runs``: whether two runs are the same bit by bit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

HELP = "whether two runs are the same, and else where they part"


def add_arguments(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Add the options of the command."""
    parser.description = (
        "Tell whether two runs are the same bit by bit: weights, optimizer, random numbers, log, "
        "settings and accuracies. Else name the first row of the logs that differs and the tensors "
        "that do. Times, the environment, and settings that no bit depends on may be others. The "
        "status is 1 where the runs differ."
    )
    parser.add_argument("a", type=Path, metavar="A", help="folder of a run")
    parser.add_argument("b", type=Path, metavar="B", help="folder of another one")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Compare, print, and return the exit status: 1 where the runs differ."""
    from hypermask_fast.finished.identity import compare_runs

    found = compare_runs(options.a, options.b)
    print(json.dumps(found.to_json(), indent=2) if options.json else found.table())
    return 0 if found.is_same else 1
