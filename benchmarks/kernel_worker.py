"""A process that measures kernel cases when its parent asks.

It reads JSON lines from stdin and answers each with one on stdout: ``{"case": NAME}`` measures that
case, ``{"do": "bandwidth"}`` copies. A fault of the device ends it, and the parent starts another.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch

from benchmarks.ahead import in_a_line
from benchmarks.kernel_cases import KernelCase, draw, error, find_kernel_cases
from benchmarks.machine import copy_bandwidth
from benchmarks.report import ERROR_FACTOR
from benchmarks.timing import Timer, count_sets

_LEAST_SAMPLES = 3


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


def _timers(case: KernelCase, variants: list[str], device: str) -> dict[str, Timer | str]:
    """Return a timer of each variant, or why there is none."""
    # All variants share inputs; each goes through as many sets of them as its caches demand.
    problems = [draw(case, device)]
    problems += [draw(case, device) for _ in range(count_sets(case.floor_bytes, device) - 1)]
    timers: dict[str, Timer | str] = {}
    for variant in variants:
        try:
            timers[variant] = Timer([problem.runs[variant] for problem in problems], device)
        except Exception as failure:
            timers[variant] = in_a_line(failure)
            _reraise_fault(device, failure)
    return timers


def _reraise_fault(device: str, failure: Exception) -> None:
    """End where the device itself failed: nothing after would run."""
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            raise failure from None


def measure(case: KernelCase, device: str, seconds: float) -> dict[str, dict[str, Any]]:
    """Return a row of numbers for each variant, or why it failed.

    Args:
        case: What to measure.
        device: "cuda" or "cpu".
        seconds: To sample for; each variant is sampled some times at least.
    """
    rows: dict[str, dict[str, Any]] = {}
    torch._dynamo.reset()
    exact = [t.clone() for t in draw(case, device).exact()]
    for variant in case.variants_on(device):
        try:
            rows[variant] = _checked(case, variant, exact, device)
        except Exception as failure:
            rows[variant] = {"failed": in_a_line(failure)}
            _reraise_fault(device, failure)
    del exact
    names = [v for v, row in rows.items() if "failed" not in row]
    timers = _timers(case, names, device)
    rows |= {v: {"failed": t} for v, t in timers.items() if isinstance(t, str)}
    running = {v: t for v, t in timers.items() if isinstance(t, Timer)}
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
    return compared(rows)


def compared(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
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
    return rows


def main(spec: dict[str, Any]) -> None:
    """Serve until stdin ends.

    Args:
        spec: size, device and threads, as of :func:`benchmarks.worker.main`, and seconds a case.
    """
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    device = spec["device"]
    torch.backends.cudnn.benchmark = True
    cases = {case.name: case for case in find_kernel_cases(None, spec["size"])}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        if request.get("do") == "bandwidth":
            answer = {"bytes_s": copy_bandwidth(device)}
        else:
            answer = measure(cases[request["case"]], device, spec["seconds"])
            if device == "cuda":
                torch.cuda.empty_cache()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
