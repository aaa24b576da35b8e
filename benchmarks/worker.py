"""A process that holds one variant and steps it when its parent asks.

It reads JSON lines from stdin and answers each with one on stdout: ``{"do": "check", "path": P}``
takes the first step and saves what it did, ``{"do": "step", "count": n}`` returns n durations in
seconds, ``{"do": "peak"}`` the peak memory in MiB over that after imports and a tiny first step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import find_cases
from benchmarks.engines import first_step, make_batch, make_engine


def _status_kib(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}; peak memory is measured on Linux only")


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main(spec: dict[str, Any]) -> None:
    """Serve one variant until stdin ends.

    Args:
        spec: suite, case, size, variant and device, and threads, 0 for torch's own choice.
    """
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    device = spec["device"]
    (small,) = find_cases(spec["suite"], [spec["case"]], "tiny")
    # What is imported or set up at the first step is no part of the variant's memory.
    first_step(make_engine(spec["variant"], small, device), small, device)
    imported = _status_kib("VmRSS")
    (case,) = find_cases(spec["suite"], [spec["case"]], spec["size"])
    engine = make_engine(spec["variant"], case, device)
    x, y = (value.to(device) for value in make_batch(case))
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["do"] == "check":
            torch.save(first_step(engine, case, device), request["path"])
        elif request["do"] == "step":
            answer["seconds"] = []
            for _ in range(request["count"]):
                _synchronize(device)
                start = time.perf_counter()
                engine.step(x, y)
                _synchronize(device)
                answer["seconds"].append(time.perf_counter() - start)
        elif device == "cuda":
            answer["mib"] = torch.cuda.max_memory_allocated() / 2**20
        else:
            answer["mib"] = (_status_kib("VmHWM") - imported) / 2**10
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
