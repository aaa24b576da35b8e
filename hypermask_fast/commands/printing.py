"""What commands print of runs that ended."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypermask_fast.commands.fitting import print_fitted
from hypermask_fast.console.terminal import width_of

if TYPE_CHECKING:
    from hypermask_fast.runs.run import RunResult
    from hypermask_fast.studies.comparison_result import Comparison
    from hypermask_fast.studies.sweep_files import SweepResult


def show(result: RunResult) -> None:
    """Print the accuracies of a run, what was changed on its way, and its folder."""
    from hypermask_fast.records.accuracy_files import format_changes, format_matrix

    print(format_matrix(result.accuracy, result.task_names, width=width_of(sys.stdout)))
    for line in format_changes(result.changes):
        print(line)
    print(f"results: {result.folder}")


def show_all(make: Callable[..., Iterable[RunResult]], folder: Path, **options: Any) -> int:
    """Show each run when it has ended, and what all have in common; the status is 2 if one failed.

    Args:
        make: :func:`hypermask_fast.studies.seeds.train` or ``resume``, given what fails.
        folder: Of the runs.
        **options: Of ``make``.
    """
    from hypermask_fast.studies import seeds
    from hypermask_fast.studies.apart import failure_text

    failures: dict[int, str] = {}

    def failed(seed: int, error: Exception) -> None:
        failures[seed] = failure_text(error)

    for result in make(failed=failed, **options):
        show(result)
    if seeds.holds_seeds(folder):  # not where none could start
        print(f"\n{seeds.summary(folder, failures).table(marks())}\nresults: {folder}")
    for seed, reason in failures.items():
        print(f"hypermask: seed {seed}: {reason}", file=sys.stderr)
    return 2 if failures else 0


def marks() -> tuple[str, str]:
    """Return what stands for yes and no: a check mark and a cross where the output has them."""
    try:
        "\u2713\u2717".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return "yes:", "NO:"
    return "\u2713", "\u2717"


def show_comparison(found: Comparison, folder: Path, as_json: bool = False) -> int:
    """Print a comparison; the status is 2 where a run failed."""
    from hypermask_fast.studies.comparison_files import text_table

    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_fitted(f"{text_table(found)}\nresults: {folder}")
    for failed in found.failed:
        print(f"hypermask: {failed.method}, seed {failed.seed}: {failed.failure}", file=sys.stderr)
    return 2 if found.failed else 0


def show_sweep(found: SweepResult, folder: Path) -> int:
    """Print what a search has reached; the status is 2 where no trial ended."""
    from hypermask_fast.studies.sweep_files import BEST

    print(found.table())
    command = found.command()
    if command is not None:
        print(f"best settings: {folder / BEST}, or\n  {command}")
    print(f"results: {folder}")
    return 2 if command is None else 0


def new_folder(name: str) -> Path:
    """Return a folder of its own for a run or a comparison that is given none."""
    # Runs that start in one second have folders of their own.
    letters = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return Path("runs") / f"{name.replace(':', '-')}-{letters}"
