"""Measures kernel cases in a process of their own, and writes rows of results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch

from benchmarks.ahead import run_ahead
from benchmarks.kernel_cases import KernelCase, draw, find_kernel_cases
from benchmarks.process import Worker
from hypermask_fast.errors import ConfigError


def _compile(name: str) -> None:
    """Run all variants of a case once, so that the compilers' caches have what they need."""
    (case,) = find_kernel_cases([name])
    problem = draw(case, "cuda")
    for variant in case.variants:
        try:
            problem.runs[variant]()
        except Exception:
            # It fails again where it is measured, and is told of there.
            continue
    del problem
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def compile_ahead(cases: Sequence[KernelCase], seconds: float) -> None:
    """Compile what the cases need on all cores."""
    run_ahead(_compile, [case.name for case in cases], time.monotonic() + seconds)


class KernelBench:
    """Measures kernel cases; a case at which the process ends has failed, and a new one begins.

    Args:
        options: suite, size, device and threads, as of :func:`benchmarks.runner.run_case`.
        seconds: To sample a case for.
    """

    def __init__(self, options: dict[str, Any], seconds: float) -> None:
        self._options, self._seconds = options, seconds
        self._worker: Worker | None = None
        self._bandwidth = 0.0

    def __enter__(self) -> KernelBench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def _ask(self, **request: Any) -> dict[str, Any]:
        if self._worker is None:
            spec = {**self._options, "seconds": self._seconds}
            # Triton interprets where there is no GPU to compile for.
            interpret = "0" if self._options["device"] == "cuda" else "1"
            variables = {"TRITON_INTERPRET": interpret, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
            self._worker = Worker("benchmarks.kernel_worker", spec, variables)
        return self._worker.ask(**request)

    def run_case(self, case: KernelCase) -> list[dict[str, Any]]:
        """Measure a case and return a row for each variant that the device has."""
        device = self._options["device"]
        variants = case.variants_on(device)
        try:
            if not self._bandwidth:
                self._bandwidth = self._ask(do="bandwidth")["bytes_s"]
            measured = self._ask(case=case.name)
        except ConfigError as error:
            self.__exit__(None, None, None)
            measured = {variant: {"failed": str(error)} for variant in variants}
        rows = []
        for variant in variants:
            row = {
                **{"kind": "kernel", "case": case.name, "variant": variant},
                **{"suite": self._options["suite"], "size": self._options["size"]},
                **{"floor_mib": case.floor_bytes / 2**20, "copy_gb_s": self._bandwidth / 1e9},
                **measured[variant],
            }
            if "median_ms" in row:
                least = case.floor_bytes / self._bandwidth * 1e3
                row["bytes_over_floor"] = row["median_ms"] / least
            rows.append(row)
        return rows
