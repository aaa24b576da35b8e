"""The command ``hypermask verify``: whether a run's learned tasks are what they were."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from hypermask_fast.commands.fitting import print_fitted

HELP = "whether learned tasks are what they were"


def add_arguments(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Add the options of the command."""
    parser.description = (
        "Recompute the test accuracy of every learned task from the newest checkpoint, beside that "
        "when it was learned and that which the run recorded last, and the largest change of a "
        "logit of its first 256 test inputs since it was learned. The status is 1 where an "
        "accuracy differs from the recorded one."
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--data-dir", help="folder of the data files [the run's]")
    parser.add_argument("--device", help="device [the run's]")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Verify, print, and return the exit status."""
    from hypermask_fast.finished.verifying import verify

    found = verify(options.run, device=options.device, data_dir=options.data_dir)
    if options.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_fitted(found.table())
    return 1 if found.differing else 0
