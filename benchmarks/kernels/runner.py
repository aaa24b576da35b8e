"""Measures kernel cases in a process of their own, and makes rows of results."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from benchmarks.harness.ahead import leave_after_a_fault, run_ahead
from benchmarks.harness.process import Worker, variables
from benchmarks.kernels.case import KernelCase, draw
from benchmarks.kernels.catalogue import find_kernel_cases
from hypermask_fast.errors import ConfigError

_CASE_SECONDS = 60.0
"""No case takes as long, unless its kernel never ends."""
_FAULTS = 2
"""How many processes may end at cases of a family, before the others are left out."""


def _compile(name: str) -> None:
    """Run all variants of a case once, so that the compilers' caches have what they need."""
    (case,) = find_kernel_cases([name])
    problem = draw(case, "cuda")
    for variant in case.variants:
        try:
            problem.runs[variant]()
        except Exception:
            # It fails again where it is measured, and is told of there.
            leave_after_a_fault()
    del problem
    leave_after_a_fault()


def compile_ahead(cases: Sequence[KernelCase], end: float) -> None:
    """Compile what the cases need on all cores, until ``end`` of ``time.monotonic()``."""
    run_ahead(_compile, [case.name for case in cases], end)


def family(name: str) -> str:
    """Return what cases of the same kernels have in common, such as "linear-both"."""
    return "-".join(name.split("-")[:2])


class KernelBench:
    """Measures kernel cases; a case at which the process ends has failed, and a new one begins.

    Args:
        options: suite, size, device and threads, as of :func:`benchmarks.steps.runner.run_steps`.
        seconds: To sample a case for.
        end: No case is waited for after this value of ``time.monotonic()``.
    """

    def __init__(self, options: dict[str, Any], seconds: float, end: float = math.inf) -> None:
        self._options, self._seconds, self._end = options, seconds, end
        self._worker: Worker | None = None
        self._bandwidth = 0.0
        self._faults: Counter[str] = Counter()

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
        device = self._options["device"]
        if self._worker is None:
            spec = {**self._options, "seconds": self._seconds}
            # Triton interprets where there is no GPU to compile for.
            interpret = {} if device == "cuda" else {"TRITON_INTERPRET": "1"}
            # What was not compiled ahead is few kernels.
            environment = variables(device) | interpret | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
            self._worker = Worker("benchmarks.kernels.worker", spec, environment)
        limit = _CASE_SECONDS if device == "cuda" else math.inf
        return self._worker.ask(min(limit, self._end - time.monotonic()), **request)

    def run_case(self, case: KernelCase) -> list[dict[str, Any]]:
        """Measure a case and return a row for each variant that the device has.

        Raises:
            ConfigError: Two processes ended at cases of the same family.
        """
        device = self._options["device"]
        variants = case.variants_on(device)
        if self._faults[family(case.name)] >= _FAULTS:
            raise ConfigError(f"{_FAULTS} processes ended at cases of {family(case.name)}")
        try:
            if not self._bandwidth:
                self._bandwidth = self._ask(do="bandwidth")["bytes_s"]
            answer = self._ask(case=case.name)
            measured, fault = answer["rows"], answer["fault"]
        except ConfigError as error:
            measured, fault = {variant: {"failed": str(error)} for variant in variants}, True
        if fault:
            self._faults[family(case.name)] += 1
            self.__exit__(None, None, None)
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
