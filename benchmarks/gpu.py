"""Runs everything that needs a GPU, each part within its seconds, and leaves logs in a folder."""

from __future__ import annotations

import contextlib
import importlib.util
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
from benchmarks.tuning.tune import TABLE
from hypermask_fast.errors import ConfigError, nearest

_ROOT = Path(__file__).parents[1]
_RECORDED = Path(__file__).with_name("results") / "gpu.json"
_TAIL = 12
_PYTEST = ("-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider")
_SAME = ("tests/benchmarks/test_benchmarks.py", "-k", "compute_the_same")
# Memory that the allocator does not keep, so that each tensor has bounds that are watched; there
# are no graphs then.
_UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
_SANITIZER = ("--print-limit", "20", "--error-exitcode", "9", "--tool")


class _Part(NamedTuple):
    """Commands that run at once, with their environment."""

    commands: Sequence[Sequence[str]]
    variables: Mapping[str, str] = {}


def _kernel_tests(*options: str, graphs: bool = True) -> list[list[str]]:
    """Return a command for each file of kernels' tests: a fault in one leaves the others alive."""
    some = [] if graphs else ["-k", "not graph and not captured"]
    files = sorted(path.relative_to(_ROOT) for path in _ROOT.glob("tests/**/test_*_kernel.py"))
    commands = [[*_PYTEST, *options, str(file), *some] for file in files]
    return [*commands, [*_PYTEST, *options, *_SAME]]


def _sanitized(tool: str) -> _Part:
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/cuda/bin"))
    found = shutil.which("compute-sanitizer", path=path)
    if found is None:
        raise ConfigError(f"compute-sanitizer is not on the PATH; leave {tool} out of --parts")
    start = (found, *_SANITIZER, tool, sys.executable)
    commands = [[*start, *c] for c in _kernel_tests(graphs=False)]
    return _Part(commands, _UNCACHED)


def _make(name: str, folder: Path, seconds: float) -> _Part:
    # A part that can end by itself does so before it is ended.
    minutes = ("--minutes", f"{max(0.1, seconds / 60 - 0.4):.2f}")
    benchmarks, file = (sys.executable, "-m", "benchmarks"), str(folder / "gpu.json")
    if name in ("memcheck", "racecheck"):
        return _sanitized(name)
    if name == "tests":
        return _Part([[sys.executable, *_PYTEST, "-m", "gpu"]])
    if name == "kernels":
        spread = ("-n", "3") if importlib.util.find_spec("xdist") else ()
        return _Part([[sys.executable, *c] for c in _kernel_tests(*spread)])
    if name == "tune":
        return _Part([[*benchmarks, "tune", "--resume", *minutes]])
    if _RECORDED.exists() and not Path(file).exists():
        shutil.copy(_RECORDED, file)
    return _Part([[*benchmarks, "run", "--suite", "gpu", "--resume", "--json", file, *minutes]])


PARTS = ("tests", "kernels", "tune", "suite", "memcheck", "racecheck")


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
    """Return the seconds of each part, given as NAME=SECONDS."""
    found = {}
    for part in parts:
        name, _, seconds = part.partition("=")
        if name not in PARTS:
            raise ConfigError(
                f"--parts has {name!r}{nearest(name, PARTS)}; choose from {', '.join(PARTS)}"
            )
        try:
            found[name] = float(seconds)
        except ValueError as error:
            raise ConfigError(f"--parts has {part!r}; give it as {name}=SECONDS") from error
    return found


def run_parts(parts: Sequence[str], folder: Path) -> bool:
    """Run parts one after the other, and leave a log of each in a folder.

    The suite's rows are ``gpu.json`` there, with their tables in ``report.md``; those of
    benchmarks/results/gpu.json are kept, and not measured again. The tuner's table, which stays in
    the package, is copied there.

    Args:
        parts: Each as NAME=SECONDS, of :data:`PARTS`.
        folder: Made if it is not there.

    Returns:
        Whether all commands ended with 0.

    Raises:
        ConfigError: A part is unknown, or cannot run here.
    """
    wanted = _seconds(parts)
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    is_fine = True
    for name, seconds in wanted.items():
        part, start = _make(name, folder, seconds), time.monotonic()
        with (folder / f"{name}.log").open("w") as output:
            statuses = _run(part, seconds, output)
        is_fine &= statuses == [0] * len(statuses)
        log(f"{name}: {statuses} in {time.monotonic() - start:.0f} s")
        if TABLE.exists():
            shutil.copy(TABLE, folder)
        if (folder / "gpu.json").exists():
            command = [sys.executable, "-m", "benchmarks", "report", str(folder / "gpu.json")]
            with (folder / "report.md").open("w") as report:
                subprocess.run(command, cwd=_ROOT, stdout=report, check=False)
    return is_fine
