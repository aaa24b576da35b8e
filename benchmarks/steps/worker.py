"""A process that holds one variant and steps it when its parent asks.

It reads JSON lines from stdin and answers each with one on stdout: ``{"do": "check", "path": P}``
takes the first step and saves what it did, ``{"do": "step", "count": n}`` returns n durations in
seconds, or on a GPU their mean, ``{"do": "report"}`` the peak memory in MiB (over that after
imports and a tiny first step; on a GPU all that was allocated), and how the steps were taken.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.process import serve
from benchmarks.steps.case import Engine
from benchmarks.steps.catalogue import find_cases
from benchmarks.steps.engine import first_step


def _status_kib(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}; peak memory is measured on Linux only")


def _step(
    engine: Engine, x: Tensor, y: Tensor, count: int, device: str, clock: Callable[[], float]
) -> list[float]:
    """Return the seconds of each of some steps; on a GPU, which runs behind, their mean."""
    times = []
    chunk = count if device == "cuda" else 1
    for _ in range(count // chunk):
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        for _ in range(chunk):
            engine.step(x, y)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((clock() - start) / chunk / engine.share)
    return times


def begin(spec: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what answers requests for steps of one variant.

    Args:
        spec: suite, case, size, variant and device, threads, 0 for torch's own choice, and the
            clock, "elapsed" or "processor".
    """
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    device = spec["device"]
    # Float32's products, which all variants are compared in; cuDNN would round to tf32.
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    clock = time.process_time if spec["clock"] == "processor" else time.perf_counter
    if device == "cpu":
        # What is imported or set up at the first step is no part of the variant's memory.
        (small,) = find_cases(spec["suite"], [spec["case"]], "tiny")
        first_step(small.make_engine(spec["variant"], device), small, device)
    imported = _status_kib("VmRSS") if device == "cpu" else 0
    (case,) = find_cases(spec["suite"], [spec["case"]], spec["size"])
    engine = case.make_engine(spec["variant"], device)
    x, y = (value.to(device) for value in case.make_batch())

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "check":
            torch.save(first_step(engine, case, device), request["path"])
            return {}
        if request["do"] == "step":
            return {"seconds": _step(engine, x, y, request["count"], device, clock)}
        if device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
        else:
            peak = (_status_kib("VmHWM") - imported) / 2**10
        return {"peak_mib": peak, "status": engine.status()}

    return answer


if __name__ == "__main__":
    serve(partial(begin, json.loads(sys.argv[1])))
