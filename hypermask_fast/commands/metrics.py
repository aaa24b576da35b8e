"""The command ``hypermask metrics``: a run's metrics, by definition or as other libraries do."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

HELP = "metrics of a run, by the definitions of several libraries"


def add_arguments(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Add the options of the command."""
    from hypermask_fast.metrics.like import LIBRARIES

    parser.description = (
        "Print the metrics of a run by their definitions: in percent by the names of this package, "
        "or by the names, formulas and units of another library. Nothing is evaluated."
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of a run, or the accuracy.npz of one"
    )
    parser.add_argument("--like", choices=LIBRARIES, help="by the names of this library")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print, and return the exit status."""
    from hypermask_fast.records import metrics_of

    found = metrics_of.metrics_of(options.run, options.like)
    if options.json:
        print(json.dumps(found.to_json(), indent=2))
        return 0
    width = max(map(len, found.values))
    for name, value in found.values.items():
        numbers = value if isinstance(value, list) else [value]
        text = ", ".join("-" if math.isnan(n) else f"{n:.{found.digits}f}" for n in numbers)
        print(f"{name:<{width}}  {text:>10}")
    for line in found.notes:
        print(line)
    return 0
