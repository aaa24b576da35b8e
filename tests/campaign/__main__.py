"""Kills and fails whole runs, resumes them, and compares their ends with an undisturbed run's."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.campaign import faults, kills
from tests.campaign.processes import Processes, Run
from tests.campaign.undisturbed import Undisturbed, undisturbed
from tests.support import alternating

_SETTINGS = (
    *("--scenario", "split-digits", "--network", "mlp", "--mlp-hidden", "8", "--tasks", "2"),
    *("--steps", "3", "--batch-size", "16", "--log-every", "3", "--device", "cpu"),
    *("--selection", "best_published", "--check-every", "2", "--checkpoint-every", "0"),
)
_EMBEDDED = ("--embedding-dim", "3", "--hidden", "5", "--capacity", "4")
_CHUNKED = ("--chunk-embedding-dim", "2", "--chunk-size", "100")


def _run(method: str, *own: str, register: str = "") -> Run:
    return Run(method, register, (*_SETTINGS, *own))


_REPLAYED = (
    *("--latent-dim", "3", "--encoder-hidden", "5", "--decoder-hidden", "5"),
    *("--replay-hidden", "4", "--replay-chunk-size", "100"),
)
# Each method with small settings of its own; the last is not of the package.
_RUNS = {
    "hypermask": _run("hypermask", *_EMBEDDED),
    "hnet": _run("hnet", *_EMBEDDED, *_CHUNKED),
    "hnet-tir": _run("hnet-tir", *_EMBEDDED, *_CHUNKED, *_REPLAYED),
    "hnet-r": _run("hnet-r", *_REPLAYED),
    "hyperinterval": _run("hyperinterval", *_EMBEDDED),
    "hyperinterval-task": _run("hyperinterval", *_EMBEDDED, "--mode", "task"),
    "supsup": _run("supsup", "--density", "0.3", "--score-init", "mean"),
    "exssnet": _run("exssnet", "--density", "0.3", "--steps", "4", "--kkt", "knn_always"),
    alternating.NAME: _run(alternating.NAME, register=alternating.__name__),
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


def _shares(count: int, runs: int) -> list[int]:
    """Return how many of ``count`` each of some runs takes."""
    return [count // runs + (number < count % runs) for number in range(runs)]


def campaign(runs: Mapping[str, Run], options: argparse.Namespace, folder: Path) -> list[str]:
    """Do all that is asked for, shared among the runs, print the figures, and return the failures.

    Args:
        runs: By name.
        options: Of the command.
        folder: For what they write.
    """
    begun = time.monotonic()
    killed_in: Counter[str] = Counter()
    failed: list[faults.Fault] = []
    failures: list[str] = []
    possible = 0
    shares = (_shares(count, len(runs)) for count in (options.kills, options.faults))
    with Processes(folder, options.workers) as processes:
        for (name, run), count_kills, count_faults in zip(runs.items(), *shares, strict=True):
            done = _Campaign(folder / name, options.workers)
            done.folder.mkdir()
            whole = undisturbed(processes, run, done.folder)

            def kill(
                case: kills.Case, folder: Path, run: Run = run, whole: Undisturbed = whole
            ) -> tuple[list[str], str]:
                return kills.kill(processes, run, whole, case, options.seed, folder)

            def fail(
                fault: faults.Fault, folder: Path, run: Run = run, whole: Undisturbed = whole
            ) -> tuple[faults.Fault, str]:
                return fault, faults.fail(processes, run, whole, fault, folder)

            cases = kills.cases(count_kills, compiles=whole.uses_library)
            for phases in done.all("kill", cases, kill):
                killed_in.update(phases)
            failed += done.all("fault", faults.faults(whole, count_faults, options.seed), fail)
            possible += sum(o.kind in faults.KINDS for o in (*whole.trace, *whole.resume_trace))
            failures += [f"{name}: {failure}" for failure in done.failures]
    if options.kills:
        print(_table(killed_in, f"{killed_in.total()} kills, by what the run was doing:"))
    if options.faults:
        title = f"{len(failed)} faults, in {possible} operations that change files:"
        print(_table(Counter(fault.name for fault in failed), title))
        print(_table(Counter(fault.operation.kind for fault in failed), "of which the operation:"))
    methods = ("methods " if len(runs) > 1 else "method ") + ", ".join(runs)
    seconds = time.monotonic() - begun
    print(f"{methods}, seed {options.seed}, {seconds:.0f} s: {len(failures)} failed")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kill -9, of all runs together")
    parser.add_argument("--faults", type=int, default=500, help="operations that fail")
    parser.add_argument("--seed", type=int, default=0, help="of the choices")
    parser.add_argument(
        "--method",
        choices=[*_RUNS, "all"],
        default="hypermask",
        help="all: each takes its share of kills and faults",
    )
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs that failed here")
    options = parser.parse_args()
    runs = _RUNS if options.method == "all" else {options.method: _RUNS[options.method]}
    if options.keep:
        options.keep.mkdir(parents=True)
        return 1 if campaign(runs, options, options.keep.absolute()) else 0
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        return 1 if campaign(runs, options, Path(folder).resolve()) else 0


if __name__ == "__main__":
    sys.exit(main())
