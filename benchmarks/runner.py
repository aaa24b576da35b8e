"""Runs the variants of a case side by side, each in its own process, and writes rows of results."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hypermask_fast
from benchmarks.cases import Case, find_cases
from benchmarks.engines import errors
from hypermask_fast.errors import ConfigError

_ROOT = Path(__file__).parents[1]
# Bytes a head parameter that a process needs at its peak, and a few hundred MiB for the rest.
_BYTES = {"published": 24, "hypnettorch": 24, "eager": 28, "ours-fallback": 14, "ours": 14, "float64": 40}
_REST = 5 * 10**8
_CHUNK_SECONDS = 0.2


class _Worker:
    """A variant in a process of its own; see :mod:`benchmarks.worker`."""

    def __init__(self, variant: str, case: Case, options: dict[str, Any]) -> None:
        spec = {**options, "case": case.name, "variant": variant}
        native = {"HYPERMASK_FAST_NATIVE": "0"} if variant == "ours-fallback" else {}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=_ROOT,
            env={**os.environ, **native},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            ConfigError: The process ended; the message is its last line.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            said = self._log.read().strip().splitlines() or ["it said nothing"]
            raise ConfigError(f"the process ended with status {code}: {said[-1]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


@contextlib.contextmanager
def _open_worker(variant: str, case: Case, options: dict[str, Any]) -> Iterator[_Worker]:
    worker = _Worker(variant, case, options)
    try:
        yield worker
    finally:
        worker.close()


def _available_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 2**10
    raise ConfigError("/proc/meminfo has no MemAvailable; the suites run on Linux only")


def _sizes(case: Case) -> tuple[int, int]:
    """Return N and the parameters of the head, from the shapes alone."""
    with torch.device("meta"):
        rows = sum(
            p.numel()
            for m in case.make_network().modules()
            if not isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
            for p in m.parameters(recurse=False)
        )
    return rows, rows * (case.hidden[-1] + 1)


def floor_bytes(case: Case) -> int:
    """Return the bytes an exact float32 step has to move: 28 a head parameter, 4 a target."""
    rows, parameters = _sizes(case)
    return 28 * parameters + 4 * rows * case.earlier


def copy_bandwidth(device: str) -> float:
    """Return bytes a second, read and written, of a copy of 256 MiB: the median of 9."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(seconds[1:])


def _groups(variants: Sequence[str], case: Case, device: str) -> list[list[str]]:
    """Return variants that run side by side, "published" in each group where memory allows."""
    parameters = _sizes(case)[1]
    room = 0.9 * _available_bytes(device)

    def fits(group: Sequence[str]) -> bool:
        return sum(_BYTES[v] * parameters + _REST for v in group) <= room

    if fits(variants):
        return [list(variants)]
    if "published" not in variants:
        return [[v] for v in variants]
    groups = []
    for pair in (["published", v] for v in variants if v != "published"):
        groups += [pair] if fits(pair) else [[v] for v in pair]
    return groups


def _timed(workers: dict[str, _Worker], seconds: float, warm_up: float) -> dict[str, list[float]]:
    """Step the workers in turn for about ``seconds``, at least three times each."""
    counts = {}
    for name, worker in workers.items():
        start, last = time.perf_counter(), 0.0
        while not last or time.perf_counter() - start < warm_up:
            last = worker.ask(do="step", count=1)["seconds"][0]
        counts[name] = max(1, min(100, int(_CHUNK_SECONDS / last)))
    times: dict[str, list[float]] = {name: [] for name in workers}
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - start < seconds:
        for name, worker in workers.items():
            times[name] += worker.ask(do="step", count=counts[name])["seconds"]
        rounds += 1
    return times


def _float64(case: Case, options: dict[str, Any], folder: str) -> dict[str, torch.Tensor] | None:
    """Return the float64 run's first step, or None where it does not fit in memory."""
    parameters = _sizes(case)[1]
    if _BYTES["float64"] * parameters + _REST > 0.9 * _available_bytes(options["device"]):
        return None
    path = f"{folder}/float64.pt"
    with _open_worker("float64", case, options) as worker:
        worker.ask(do="check", path=path)
    return torch.load(path)


def _error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, Any]:
    each = errors(found, exact)
    worst = max(each, key=lambda name: each[name])
    # JSON has no infinity.
    return {"max_error": min(each[worst], 1e300), "worst": worst}


def _run_group(
    group: Sequence[str],
    case: Case,
    options: dict[str, Any],
    exact: dict[str, torch.Tensor] | None,
    seconds: float,
    folder: str,
) -> dict[str, dict[str, Any]]:
    """Return measurements by variant: times and errors, or why it failed."""
    found: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        workers = {v: stack.enter_context(_open_worker(v, case, options)) for v in group}
        for variant, worker in list(workers.items()):
            path = f"{folder}/{variant}.pt"
            try:
                worker.ask(do="check", path=path)
            except ConfigError as error:
                found[variant] = {"failed": str(error)}
                del workers[variant]
                continue
            found[variant] = {} if exact is None else _error(torch.load(path), exact)
        for variant, times in _timed(workers, seconds, 0.1 * seconds / len(group)).items():
            low, median, high = np.percentile(times, (20, 50, 80)) * 1e3
            found[variant] |= {
                "median_ms": float(median),
                "p20_ms": float(low),
                "p80_ms": float(high),
                "steps": len(times),
                "peak_mib": workers[variant].ask(do="peak")["mib"],
            }
    return found


def run_case(
    case: Case, variants: Sequence[str], options: dict[str, Any], seconds: float
) -> list[dict[str, Any]]:
    """Measure the variants of a case and return a row for each.

    Args:
        case: The setting.
        variants: Names, in the order of the rows.
        options: suite, size, device and threads, as :func:`benchmarks.worker.main` takes them.
        seconds: To measure for, after a warm-up of a tenth of it; each variant takes three steps
            at least.
    """
    device = options["device"]
    measured: dict[str, dict[str, Any]] = {}
    bandwidth = copy_bandwidth(device)
    with tempfile.TemporaryDirectory() as folder:
        exact = _float64(case, options, folder)
        checked = None
        if exact is None:
            # The full size does not fit in float64: the errors are those of the tiny one.
            small = {**options, "size": "tiny"}
            (tiny,) = find_cases(options["suite"], [case.name], "tiny")
            checked = _float64(tiny, small, folder)
        for group in _groups(variants, case, device):
            rows = _run_group(group, case, options, exact, seconds, folder)
            if checked is not None:
                for variant, row in rows.items():
                    with _open_worker(variant, tiny, small) as worker:
                        worker.ask(do="check", path=f"{folder}/tiny.pt")
                    row |= _error(torch.load(f"{folder}/tiny.pt"), checked)
            base = rows.get("published", {}).get("median_ms")
            for row in rows.values():
                median = row.get("median_ms")
                row["ratio"] = base / median if base and median else None
                row["error_size"] = options["size"] if checked is None else "tiny"
            measured = rows | measured
    floor = floor_bytes(case)
    for row in measured.values():
        median = row.get("median_ms", math.nan)
        over = median / 1e3 * bandwidth / floor
        row["bytes_over_floor"] = over if over == over else None
    common = {
        "case": case.name,
        "suite": options["suite"],
        "size": options["size"],
        "floor_mib": floor / 2**20,
        "copy_gb_s": bandwidth / 1e9,
    }
    return [{**common, "variant": v, **measured[v]} for v in variants]


def environment(device: str, threads: int) -> dict[str, Any]:
    """Return machine, versions and commit, as every row carries them."""
    model = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    machine: dict[str, Any] = {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
    }
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hypermask_fast": hypermask_fast.__version__,
    }
    return {"machine": machine, "versions": versions, "commit": _commit()}


def _commit() -> str | None:
    """Return the commit of the checkout, with "+" where files differ from it."""
    command = ["git", "-C", str(_ROOT)]
    try:
        head, changes = (
            subprocess.run([*command, *args], capture_output=True, text=True, check=True).stdout
            for args in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changes.strip() else "")
