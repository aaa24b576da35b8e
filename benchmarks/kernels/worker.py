"""A process that measures kernel cases when its parent asks.

It reads JSON lines from stdin and answers each with one on stdout: ``{"case": NAME}`` measures that
case, ``{"do": "bandwidth"}`` copies. After a fault of the device, of which the answer tells, the
parent starts another.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.harness.ahead import device_works, in_a_line
from benchmarks.harness.correctness import ERROR_FACTOR
from benchmarks.harness.process import serve
from benchmarks.harness.timing import Timer, count_sets
from benchmarks.kernels.case import KernelCase, draw, error
from benchmarks.kernels.catalogue import find_kernel_cases
from hypermask_fast.benching.bandwidth import copy_bandwidth

_LEAST_SAMPLES = 3


class _Fault(Exception):
    """The device itself failed: nothing that follows in this process would run."""


def _failed(device: str, failure: Exception) -> str:
    """Return what a variant's failure was.

    Raises:
        _Fault: It was the device's.
    """
    if device == "cuda" and not device_works():
        raise _Fault(in_a_line(failure)) from None
    return in_a_line(failure)


def _checked(case: KernelCase, variant: str, exact: Any, device: str) -> dict[str, Any]:
    """Run a variant once on fresh inputs; return its error and peak memory."""
    run = draw(case, device).runs[variant]
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    result: dict[str, Any] = {"max_error": error(run(), exact), "peak_mib": None}
    if device == "cuda":
        # Again, without what the comparison takes.
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        result["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return result


def _timers(case: KernelCase, rows: dict[str, dict[str, Any]], device: str) -> dict[str, Timer]:
    """Return timers of the variants that have not failed; rows tell of those that fail now."""
    # All variants share inputs; each goes through as many sets of them as its caches demand.
    problems = [draw(case, device)]
    problems += [draw(case, device) for _ in range(count_sets(case.floor_bytes, device) - 1)]
    timers = {}
    for variant, row in rows.items():
        if "failed" in row:
            continue
        try:
            timers[variant] = Timer([problem.runs[variant] for problem in problems], device)
        except Exception as failure:
            row["failed"] = in_a_line(failure)
            row["failed"] = _failed(device, failure)
    return timers


def measure(case: KernelCase, device: str, seconds: float, rows: dict[str, dict[str, Any]]) -> None:
    """Fill in a row of numbers for each variant, or why it failed.

    Args:
        case: What to measure.
        device: "cuda" or "cpu".
        seconds: To sample for; each variant is sampled some times at least.
        rows: Filled by variant, as far as it comes.

    Raises:
        _Fault: The device failed.
    """
    torch._dynamo.reset()
    exact = [t.clone() for t in draw(case, device).exact()]
    for variant in case.variants_on(device):
        try:
            rows[variant] = _checked(case, variant, exact, device)
        except Exception as failure:
            rows[variant] = {"failed": in_a_line(failure)}
            rows[variant] = {"failed": _failed(device, failure)}
    del exact
    running = _timers(case, rows, device)
    samples: dict[str, list[float]] = {v: [] for v in running}
    start, rounds = time.perf_counter(), 0
    while running and (rounds < _LEAST_SAMPLES or time.perf_counter() - start < seconds):
        for variant, timer in running.items():
            samples[variant].append(timer.sample())
        rounds += 1
    for variant, times in samples.items():
        low, median, high = np.percentile(times, (20, 50, 80))
        rows[variant] |= {
            "median_ms": float(median),
            "p20_ms": float(low),
            "p80_ms": float(high),
            "steps": rounds,
            "way": running[variant].way,
            "gb_s": case.floor_bytes / float(median) / 1e6,
        }
    compared(rows)


def answer_case(case: KernelCase, device: str, seconds: float) -> dict[str, Any]:
    """Return ``rows`` by variant, and whether the device had a ``fault``."""
    rows: dict[str, dict[str, Any]] = {}
    fault = None
    try:
        measure(case, device, seconds, rows)
    except Exception as failure:
        fault = in_a_line(failure)
    for variant in case.variants_on(device):
        row = rows.setdefault(variant, {})
        if fault is not None and "failed" not in row:
            row["failed"] = f"not measured: {fault}"
    return {"rows": rows, "fault": fault is not None}


def compared(rows: dict[str, dict[str, Any]]) -> None:
    """Add the speed-up of kernels over the best of the other variants that is right."""
    allowed = ERROR_FACTOR * rows.get("eager", {}).get("max_error", 0.0)
    right = {
        v: row["median_ms"]
        for v, row in rows.items()
        if not v.startswith("kernel") and "median_ms" in row and row["max_error"] <= allowed
    }
    best = min(right, key=lambda v: right[v], default=None)
    for variant, row in rows.items():
        row |= {"ratio": None, "alternative": None}
        if best is not None and variant.startswith("kernel") and "median_ms" in row:
            row |= {"ratio": right[best] / row["median_ms"], "alternative": best}


def begin(spec: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what answers requests.

    Args:
        spec: size, device and threads, as of :func:`benchmarks.steps.worker.begin`, and seconds a
            case.
    """
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    device = spec["device"]
    torch.backends.cudnn.benchmark = True
    cases = {case.name: case for case in find_kernel_cases(None, spec["size"])}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request.get("do") == "bandwidth":
            return {"bytes_s": copy_bandwidth(device)}
        found = answer_case(cases[request["case"]], device, spec["seconds"])
        if device == "cuda" and not found["fault"]:
            torch.cuda.empty_cache()
        return found

    return answer


if __name__ == "__main__":
    serve(partial(begin, json.loads(sys.argv[1])))
