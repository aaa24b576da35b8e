"""What commands print of runs that ended."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hypermask_fast.commands.fitting import print_fitted
from hypermask_fast.terminal import width_of

if TYPE_CHECKING:
    from hypermask_fast.runs.comparison_result import Comparison
    from hypermask_fast.runs.run import RunResult


def show(result: RunResult) -> None:
    """Print the accuracies of a run, what was changed on its way, and its folder."""
    from hypermask_fast.runs.report import format_changes, format_matrix

    print(format_matrix(result.accuracy, result.task_names, width=width_of(sys.stdout)))
    for line in format_changes(result.changes):
        print(line)
    print(f"results: {result.folder}")


def show_all(results: Iterable[RunResult]) -> None:
    """Show each run when it has ended, and then what all have in common."""
    import numpy as np

    from hypermask_fast.runs import metrics

    summaries = []
    for result in results:
        show(result)
        summaries.append(metrics.summary(result.accuracy))
    print(f"\n{len(summaries)} seeds, mean +/- standard deviation:")
    for name in summaries[0]:
        values = np.array([summary[name] for summary in summaries])
        print(f"  {name:<20} {values.mean():8.2f} +/- {values.std(ddof=1):.2f}")


def show_comparison(found: Comparison, folder: Path, as_json: bool = False) -> int:
    """Print a comparison; the status is 2 where a run failed."""
    from hypermask_fast.runs.comparison_files import text_table

    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_fitted(f"{text_table(found)}\nresults: {folder}")
    for failed in found.failed:
        print(f"hypermask: {failed.method}, seed {failed.seed}: {failed.failure}", file=sys.stderr)
    return 2 if found.failed else 0


def new_folder(name: str) -> Path:
    """Return a folder of its own for a run or a comparison that is given none."""
    # Runs that start in one second have folders of their own.
    letters = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return Path("runs") / f"{name.replace(':', '-')}-{letters}"
