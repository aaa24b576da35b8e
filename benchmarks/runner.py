"""Runs the variants of a case side by side, each in its own process, and writes rows of results."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Case, find_cases
from benchmarks.engines import errors
from benchmarks.machine import copy_bandwidth
from benchmarks.process import Worker
from hypermask_fast.errors import ConfigError

# Bytes a head parameter that a process needs at its peak, and a few hundred MiB for the rest.
_BYTES = {
    **{"published": 24, "hypnettorch": 24, "eager": 28, "float64": 40},
    **{"ours-fallback": 14, "ours-eager": 14, "ours": 14},
}
_REST = 5 * 10**8
# Steps that a worker takes at a time; on a GPU they are timed together, and rounds are many.
_CHUNK_SECONDS = {"cpu": 0.2, "cuda": 0.04}


@contextlib.contextmanager
def _open_worker(variant: str, case: Case, options: dict[str, Any]) -> Iterator[Worker]:
    spec = {**options, "case": case.name, "variant": variant}
    native = {"HYPERMASK_FAST_NATIVE": "0"} if variant == "ours-fallback" else {}
    worker = Worker("benchmarks.worker", spec, native)
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


def head_parameters(case: Case) -> int:
    """Return the number of parameters of a case's head."""
    return _sizes(case)[1]


def floor_bytes(case: Case) -> int:
    """Return the bytes an exact float32 step has to move: 28 a head parameter, 4 a target."""
    rows, parameters = _sizes(case)
    return 28 * parameters + 4 * rows * case.earlier


def _groups(variants: Sequence[str], case: Case, device: str) -> list[list[str]]:
    """Return variants that run side by side, "published" in each group where memory allows."""
    room = _room(device)

    def fits(group: Sequence[str]) -> bool:
        return sum(_needed(v, case) for v in group) <= room

    if fits(variants):
        return [list(variants)]
    if "published" not in variants:
        return [[v] for v in variants]
    groups = []
    for pair in (["published", v] for v in variants if v != "published"):
        groups += [pair] if fits(pair) else [[v] for v in pair]
    return groups


def _timed(
    workers: dict[str, Worker], device: str, seconds: float, warm_up: float
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Step the workers in turn for about ``seconds``, at least three times each.

    Returns:
        Seconds of a step, and the number of steps, by worker.
    """
    counts = {}
    for name, worker in workers.items():
        start, last = time.perf_counter(), 0.0
        while not last or time.perf_counter() - start < warm_up:
            last = worker.ask(do="step", count=1)["seconds"][0]
        counts[name] = max(1, min(100, int(_CHUNK_SECONDS[device] / last)))
    times: dict[str, list[float]] = {name: [] for name in workers}
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - start < seconds:
        for name, worker in workers.items():
            times[name] += worker.ask(do="step", count=counts[name])["seconds"]
        rounds += 1
    return times, {name: rounds * count for name, count in counts.items()}


def _room(device: str) -> float:
    return 0.9 * _available_bytes(device)


def _needed(variant: str, case: Case) -> int:
    return _BYTES[variant] * _sizes(case)[1] + _REST


def _float64(case: Case, options: dict[str, Any], folder: str) -> dict[str, torch.Tensor] | None:
    """Return the float64 run's first step, or None where it does not fit in memory."""
    if _needed("float64", case) > _room(options["device"]):
        return None
    path = f"{folder}/float64.pt"
    with _open_worker("float64", case, options) as worker:
        worker.ask(do="check", path=path)
    return torch.load(path)


@contextlib.contextmanager
def _exact(
    case: Case, options: dict[str, Any], folder: str
) -> Iterator[Callable[[], dict[str, torch.Tensor] | None]]:
    """Yield what waits for the float64 run, which on a GPU goes on while variants start."""
    if options["device"] != "cuda":
        found = _float64(case, options, folder)
        yield lambda: found
        return
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(_float64, case, options, folder).result


def _error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, Any]:
    each = errors(found, exact)
    worst = max(each, key=lambda name: each[name])
    # JSON has no infinity.
    return {"max_error": min(each[worst], 1e300), "worst": worst}


def _run_group(
    group: Sequence[str],
    case: Case,
    options: dict[str, Any],
    wait: Callable[[], dict[str, torch.Tensor] | None],
    seconds: float,
    folder: str,
) -> dict[str, dict[str, Any]]:
    """Return measurements by variant: times and errors, or why it failed."""
    found: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        workers = {v: stack.enter_context(_open_worker(v, case, options)) for v in group}
        for variant, worker in list(workers.items()):
            try:
                worker.ask(do="check", path=f"{folder}/{variant}.pt")
            except ConfigError as error:
                found[variant] = {"failed": str(error)}
                del workers[variant]
        exact = wait()
        if not workers:
            return found
        for variant in workers:
            checked = None if exact is None else torch.load(f"{folder}/{variant}.pt")
            found[variant] = {} if exact is None or checked is None else _error(checked, exact)
        warm_up = 0.1 * seconds / len(group)
        times, steps = _timed(workers, options["device"], seconds, warm_up)
        for variant in workers:
            low, median, high = np.percentile(times[variant], (20, 50, 80)) * 1e3
            found[variant] |= {
                "median_ms": float(median),
                "p20_ms": float(low),
                "p80_ms": float(high),
                "steps": steps[variant],
                **workers[variant].ask(do="report"),
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
    with tempfile.TemporaryDirectory() as folder, _exact(case, options, folder) as wait:
        fitting = list(variants)
        if device == "cuda":
            room = _room(device)
            fitting = [v for v in variants if _needed(v, case) <= room]
            for variant in set(variants) - set(fitting):
                need = _needed(variant, case) / 2**30
                reason = f"it needs about {need:.0f} GiB, and {room / 2**30:.0f} GiB are free"
                measured[variant] = {"failed": reason}
        checked = None
        if _needed("float64", case) > _room(device):
            # The full size does not fit in float64: the errors are those of the tiny one.
            small = {**options, "size": "tiny"}
            (tiny,) = find_cases(options["suite"], [case.name], "tiny")
            checked = _float64(tiny, small, folder)
        for group in _groups(fitting, case, device) if fitting else ():
            rows = _run_group(group, case, options, wait, seconds, folder)
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
