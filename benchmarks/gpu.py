"""Runs everything that needs a GPU, what matters most first, and leaves logs in a folder."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from benchmarks.harness.ahead import log
from benchmarks.harness.files import write_json
from benchmarks.tuning.tune import TABLE
from hypermask_fast.errors import ConfigError, nearest

_ROOT = Path(__file__).parents[1]
_RECORDED = Path(__file__).with_name("results") / "gpu.json"
_TAIL = 12
_SEVERAL = 6  # files of tests that several processes run
_PYTEST = ("-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider")
_SAME = ("tests/benchmarks/test_benchmarks.py", "-k", "compute_the_same")
# Memory that the allocator does not keep, so that each tensor has bounds that are watched; there
# are no graphs then.
_UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
_SANITIZER = ("--print-limit", "20", "--error-exitcode", "9", "--tool")


PARTS: dict[str, float] = {
    **{"check": 90, "first": 490, "tests": 150, "kernels": 180, "tune": 290, "suite": 400},
    **{"memcheck": 80, "racecheck": 80},
}
"""The seconds of each part: those that one call has no time for are for the next one."""
_DEFAULT = ("check", "first", "tests", "kernels", "tune", "suite", "memcheck")
_MINUTES = 28.0
# With the kernels' defaults: the suite measures them again with what was tuned.
_FIRST_CASES = (
    *("permuted-mnist-t0", "permuted-mnist-t9", "permuted-mnist-t99", "split-mnist-t4"),
    *("head-*", "masks-*", "linear-*-w4096-*", "conv-*"),
)
_ENDS_BY_ITSELF = ("first", "tune", "suite")
_SHORTEST = 60.0
_SANITIZERS = ("memcheck", "racecheck")


class _Part(NamedTuple):
    """Commands that run at once, with their environment."""

    commands: Sequence[Sequence[str]]
    variables: Mapping[str, str] = {}


def _kernel_tests(*options: str, graphs: bool = True) -> list[list[str]]:
    """Return a command for each file of kernels' tests: a fault in one leaves the others alive."""
    words = "not graph and not captured and not selfcheck and not left_out"
    some = [] if graphs else ["-k", words]
    files = sorted(path.relative_to(_ROOT) for path in _ROOT.glob("tests/**/test_*_kernel.py"))
    # Each process takes memory: only the longest files have several.
    longest = sorted(files, key=lambda file: (_ROOT / file).stat().st_size)[-_SEVERAL:]
    commands = [
        [*_PYTEST, *(options if file in longest else ()), str(file), *some] for file in files
    ]
    return [*commands, [*_PYTEST, *options, *_SAME]]


def _sanitizer() -> str | None:
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/cuda/bin"))
    return shutil.which("compute-sanitizer", path=path)


def _sanitized(tool: str) -> _Part:
    start = (_sanitizer() or "compute-sanitizer", *_SANITIZER, tool, sys.executable)
    commands = [[*start, *c] for c in _kernel_tests(graphs=False)]
    return _Part(commands, _UNCACHED)


def _make(name: str, folder: Path, seconds: float) -> _Part:
    # A part that can end by itself does so before it is ended.
    minutes = ("--minutes", f"{max(0.1, seconds / 60 - 0.4):.2f}")
    benchmarks, file = (sys.executable, "-m", "benchmarks"), str(folder / "gpu.json")
    if name == "check":
        return _Part([[sys.executable, "-m", "hypermask_fast", "doctor", "--kernels"]])
    if name in _SANITIZERS:
        return _sanitized(name)
    if name == "tests":
        # The tests of graphs and batches first, should there be no time for all.
        folders = ("tests/training", "tests/scenarios", "tests")
        return _Part([[sys.executable, *_PYTEST, "-m", "gpu", *folders]])
    if name == "kernels":
        spread = ("-n", "3") if importlib.util.find_spec("xdist") else ()
        return _Part([[sys.executable, *c] for c in _kernel_tests(*spread)])
    if name == "tune":
        return _Part([[*benchmarks, "tune", "--resume", *minutes]])
    run = (*benchmarks, "run", "--suite", "gpu", "--resume", *minutes, "--json")
    if name == "first":
        return _Part([[*run, str(folder / "first.json"), "--case", *_FIRST_CASES]])
    if _RECORDED.exists() and not Path(file).exists():
        shutil.copy(_RECORDED, file)
    return _Part([[*run, file]])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _run(part: _Part, seconds: float, output: TextIO) -> list[int | None]:
    """Run the commands of a part at once; return their exit statuses, None where one was killed."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1", **part.variables}
    end = time.monotonic() + seconds
    files = [Path(f"{output.name}.{number}") for number in range(len(part.commands))]
    processes = []
    for command, file in zip(part.commands, files, strict=True):
        with file.open("wb") as each:
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=_ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=each,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
            )
    found: list[int | None] = []
    for command, process, file in zip(part.commands, processes, files, strict=True):
        try:
            found.append(process.wait(max(0.0, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            found.append(None)
        finally:
            _end(process)
        said = "was killed" if found[-1] is None else f"ended with {found[-1]}"
        text = file.read_text(errors="replace")
        output.write(f"$ {' '.join(command)}\n{text}\n[{said}]\n\n")
        output.flush()
        file.unlink()
        tail = "\n".join(text.splitlines()[-_TAIL:])
        log(f"$ {' '.join(command[-6:])}\n{tail}\n[{said}]")
    return found


def _seconds(parts: Sequence[str]) -> dict[str, float]:
    """Return the seconds of each part, given as NAME or NAME=SECONDS."""
    found = {}
    for part in parts:
        name, equals, seconds = part.partition("=")
        if name not in PARTS:
            raise ConfigError(
                f"--parts has {name!r}{nearest(name, PARTS)}; choose from {', '.join(PARTS)}"
            )
        try:
            found[name] = float(seconds) if equals else PARTS[name]
        except ValueError as error:
            raise ConfigError(f"--parts has {part!r}; give it as {name}=SECONDS") from error
    missing = [name for name in found if name in _SANITIZERS and _sanitizer() is None]
    if missing:
        raise ConfigError(
            f"compute-sanitizer is not on the PATH; leave {missing[0]} out of --parts"
        )
    return found


def _default_parts() -> dict[str, float]:
    found = {name: PARTS[name] for name in _DEFAULT}
    if _sanitizer() is None:
        log("memcheck is left out: compute-sanitizer is not on the PATH")
        del found["memcheck"]
    return found


def _time_of(name: str, seconds: float, left: float) -> float:
    """Return the seconds that a part gets of those that are left; 0: it waits for another call."""
    least = min(_SHORTEST, seconds) if name in _ENDS_BY_ITSELF else seconds
    return min(seconds, left) if left >= least else 0.0


def _write_report(rows: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "report", str(rows)]
    with rows.with_name("report.md" if rows.stem == "gpu" else "first.md").open("w") as report:
        subprocess.run(command, cwd=_ROOT, stdout=report, check=False)


def _read(file: Path) -> dict[str, list[int | None]]:
    try:
        return json.loads(file.read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def run_parts(
    parts: Sequence[str] | None, folder: Path, minutes: float = _MINUTES, resume: bool = False
) -> bool:
    """Run parts one after the other, and leave a log of each in a folder.

    The suite's rows are ``gpu.json`` there, with their tables in ``report.md``; those of
    benchmarks/results/gpu.json are kept, and not measured again. Those of ``first``, which are
    measured before the kernels are tuned, are ``first.json`` and ``first.md``. The tuner's table,
    which stays in the package, is copied there. How each part ended is in ``parts.json``.

    Args:
        parts: Each as NAME or NAME=SECONDS, of :data:`PARTS`. Default: all but ``racecheck``.
        folder: Made if it is not there.
        minutes: Of the call. A part that they do not suffice for is left to the next one.
        resume: Leave out the parts that an earlier call brought to their end.

    Returns:
        Whether all commands ended with 0, and none is left.

    Raises:
        ConfigError: A part is unknown, or cannot run here.
    """
    end = time.monotonic() + 60 * minutes
    wanted = _default_parts() if parts is None else _seconds(parts)
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    ended = _read(folder / "parts.json")
    if resume:
        wanted = {n: s for n, s in wanted.items() if None in ended.get(n, [None])}
    is_fine = True
    for number, (name, most) in enumerate(wanted.items()):
        seconds = _time_of(name, most, end - time.monotonic())
        if not seconds:
            later = ", ".join([*wanted][number:])
            log(f"no time is left for {later}: --resume goes on with the same --out")
            return False
        part, start = _make(name, folder, seconds), time.monotonic()
        with (folder / f"{name}.log").open("w") as output:
            statuses = _run(part, seconds, output)
        is_fine &= statuses == [0] * len(statuses)
        log(f"{name}: {statuses} in {time.monotonic() - start:.0f} s")
        ended[name] = statuses
        write_json(folder / "parts.json", ended)
        if TABLE.exists():
            shutil.copy(TABLE, folder)
        for rows in (folder / "first.json", folder / "gpu.json"):
            if rows.exists():
                _write_report(rows)
    return is_fine
