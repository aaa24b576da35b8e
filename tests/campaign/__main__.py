"""Kills and fails whole runs, resumes them, and compares their ends with an undisturbed run's."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.campaign import faults, kills
from tests.campaign.processes import Processes, Run
from tests.campaign.undisturbed import undisturbed
from tests.support import alternating

_SETTINGS = (
    *("--scenario", "split-digits", "--network", "mlp", "--mlp-hidden", "8", "--tasks", "2"),
    *("--steps", "3", "--batch-size", "16", "--log-every", "3", "--device", "cpu"),
    *("--selection", "best_published", "--check-every", "2", "--checkpoint-every", "0"),
)
# What a method needs beside: its own small settings, and where one that is not of the package is.
_OF_METHOD: dict[str, tuple[str, tuple[str, ...]]] = {
    "hypermask": ("", ("--embedding-dim", "3", "--hidden", "5", "--capacity", "4")),
    alternating.NAME: (alternating.__name__, ()),
}


def _table(counts: Mapping[str, int], title: str) -> str:
    rows = [f"  {number:5} {name}" for name, number in sorted(counts.items())]
    return "\n".join([title, *rows])


class _Campaign:
    """Runs cases side by side, each in a folder of its own, and keeps those that fail."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.workers = folder, workers
        self.failures: list[str] = []

    def all(
        self, name: str, cases: Sequence[Any], run: Callable[[Any, Path], tuple[Any, str]]
    ) -> list[Any]:
        def one(numbered: tuple[int, Any]) -> Any:
            number, case = numbered
            folder = self.folder / f"{name}-{number}"
            folder.mkdir()
            result, wrong = run(case, folder)
            if wrong:
                self.failures.append(f"{folder.name}, {case}: {wrong}")
                print(self.failures[-1], flush=True)
            else:
                shutil.rmtree(folder)
                for beside in self.folder.glob(f"{folder.name}.*"):
                    beside.unlink()
            return result

        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(one, enumerate(cases)))


def campaign(run: Run, options: argparse.Namespace, folder: Path) -> list[str]:
    """Do all that is asked for, print the figures, and return the failures."""
    begun = time.monotonic()
    done = _Campaign(folder, options.workers)
    with Processes(folder, options.workers) as processes:
        whole = undisturbed(processes, run, folder)

        def kill(case: kills.Case, folder: Path) -> tuple[list[str], str]:
            return kills.kill(processes, run, whole, case, options.seed, folder)

        def fail(fault: faults.Fault, folder: Path) -> tuple[faults.Fault, str]:
            return fault, faults.fail(processes, run, whole, fault, folder)

        cases = kills.cases(options.kills, compiles=whole.uses_library)
        killed: Iterable[list[str]] = done.all("kill", cases, kill)
        killed_in = Counter(phase for phases in killed for phase in phases)
        planned = faults.faults(whole, options.faults, options.seed)
        failed: list[faults.Fault] = done.all("fault", planned, fail)
    possible = sum(o.kind in faults.KINDS for o in (*whole.trace, *whole.resume_trace))
    if options.kills:
        print(_table(killed_in, f"{killed_in.total()} kills, by what the run was doing:"))
    if options.faults:
        title = f"{len(failed)} faults, in {possible} operations that change files:"
        print(_table(Counter(fault.name for fault in failed), title))
        print(_table(Counter(fault.operation.kind for fault in failed), "of which the operation:"))
    print(
        f"method {run.method}, seed {options.seed}, {time.monotonic() - begun:.0f} s: "
        f"{len(done.failures)} failed"
    )
    return done.failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kill -9, of all runs together")
    parser.add_argument("--faults", type=int, default=500, help="operations that fail")
    parser.add_argument("--seed", type=int, default=0, help="of the choices")
    parser.add_argument("--method", default="hypermask", help=f"such as {', '.join(_OF_METHOD)}")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs that failed here")
    options = parser.parse_args()
    register, own = _OF_METHOD.get(options.method, ("", ()))
    run = Run(options.method, register, (*_SETTINGS, *own))
    if options.keep:
        options.keep.mkdir(parents=True)
        return 1 if campaign(run, options, options.keep.absolute()) else 0
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        return 1 if campaign(run, options, Path(folder).resolve()) else 0


if __name__ == "__main__":
    sys.exit(main())
