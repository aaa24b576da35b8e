"""The command ``hypermask plot``: figures of runs, and a report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

HELP = "figures of runs with their data, and a report for the browser"


def add_arguments(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Add the options of the command."""
    parser.description = (
        "Draw the accuracy matrix, forgetting, losses, overlap of masks, capacity used, embeddings "
        "and accuracy by class of a run, each with its data as csv, and make report.html, one page "
        "that needs nothing beside itself. Several runs, or the folder of several seeds, are drawn "
        "over one another, named by the settings in which they differ. The data set need not be "
        "there."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of several seeds"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the figures [RUN/figures]"
    )
    parser.add_argument("--format", default="png", metavar="FORMAT", help="png, svg or pdf [png]")


def run(options: argparse.Namespace) -> int:
    """Draw, print where to, and return the exit status."""
    from hypermask_fast.finished.plotting import plot

    made = plot(options.runs, options.out, options.format)
    for note in made.notes:
        print(f"note: {note}")
    print(f"{len(made.files)} figures: {made.folder}")
    print(f"report: {made.report}")
    return 0
