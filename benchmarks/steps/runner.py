"""Runs the variants of a case side by side, each in its own process, and makes rows of results."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.harness.process import Worker, variables
from benchmarks.steps.case import EXACT, StepCase
from benchmarks.steps.sizes import (
    chosen,
    groups_of,
    needed,
    room_of,
    start_seconds,
    without_room,
)
from hypermask_fast.benching.bandwidth import copy_bandwidth
from hypermask_fast.benching.first_step import errors
from hypermask_fast.errors import ConfigError

# Steps that a worker takes at a time; on a GPU they are timed together, and rounds are many.
_CHUNK_SECONDS = {"cpu": 0.2, "cuda": 0.04}
# How many times what a start takes is waited for on a GPU, and seconds for what comes after it.
_LATE, _ANSWER_SECONDS = 4.0, 60.0
_GIVEN_UP = "the time of the run was over"


def _open_worker(variant: str, case: StepCase, options: dict[str, Any]) -> Worker:
    spec = {**options, "case": case.name, "variant": variant}
    native = {"HYPERMASK_FAST_NATIVE": "0"} if variant == "ours-fallback" else {}
    return Worker("benchmarks.steps.worker", spec, variables(options["device"]) | native)


def _error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, Any]:
    each = errors(found, exact)
    worst = max(each, key=lambda name: each[name])
    # JSON has no infinity.
    return {"max_error": min(each[worst], 1e300), "worst": worst}


class _Steps:
    """Variants of a case, each in a process, and what float64 says of their first steps.

    Where float64 does not fit in memory, first steps are compared at the tiny size. A variant whose
    process ends has failed; the others go on.

    Args:
        group: The variants.
        case: The setting.
        options: As of :func:`run_steps`.
        first_steps: What float64 found, filled by the first group of a case.
        end: Processes are killed at this value of ``time.monotonic()``.

    Attributes:
        case: The setting.
        rows: By variant, what was measured, or why it failed.
    """

    def __init__(
        self,
        group: Sequence[str],
        case: StepCase,
        options: dict[str, Any],
        first_steps: dict[str, dict[str, torch.Tensor]],
        end: float,
    ) -> None:
        self.case, self._options, self._end = case, options, end
        self.rows: dict[str, dict[str, Any]] = {v: {} for v in group}
        self._steps = first_steps
        self._folder, self._opened = tempfile.TemporaryDirectory(), time.monotonic()
        self._workers: dict[str, Worker] = {}
        self._exact: dict[str, Worker] = {}
        device, size = options["device"], options["size"]
        self._size = "tiny" if needed(EXACT, case) > room_of(device) else size
        small = {**options, "size": self._size}
        for variant in (EXACT, *(group if self._size != size else ())):
            if variant not in self._steps:
                self._exact[variant] = _open_worker(variant, case, small)
                if device == "cpu":
                    # One after the other: two cores and their memory are soon taken.
                    self._check_exact()
        self._workers = {v: _open_worker(v, case, options) for v in group}

    def _ask(self, worker: Worker, **request: Any) -> dict[str, Any]:
        left = self._end - time.monotonic()
        if left <= 0:
            raise ConfigError(_GIVEN_UP)
        if self._options["device"] == "cuda":
            # A kernel that never ends is not to take the other cases' time, nor several of them.
            start = self._opened + _LATE * start_seconds(self.case) - time.monotonic()
            left = min(left, max(_LATE, start) if request["do"] == "check" else _ANSWER_SECONDS)
        return worker.ask(left, **request)

    def _first_step(self, worker: Worker) -> dict[str, torch.Tensor]:
        path = f"{self._folder.name}/first.pt"
        self._ask(worker, do="check", path=path)
        return torch.load(path)

    def _check_exact(self) -> None:
        for variant, worker in self._exact.items():
            with contextlib.suppress(ConfigError):
                self._steps[variant] = self._first_step(worker)
            worker.finish()
        for worker in self._exact.values():
            worker.close()
        self._exact = {}

    def _fail(self, variant: str, error: ConfigError) -> None:
        self.rows[variant] = {"failed": str(error)}
        self._workers.pop(variant).close()

    def check(self) -> None:
        """Wait until all have taken their first steps, and compare these."""
        found = {}
        for variant, worker in list(self._workers.items()):
            try:
                found[variant] = self._first_step(worker)
            except ConfigError as error:
                self._fail(variant, error)
        self._check_exact()
        exact = self._steps.get(EXACT)
        for variant, row in self.rows.items():
            step = (found if self._size == self._options["size"] else self._steps).get(variant)
            if "failed" not in row and step is not None and exact is not None:
                row |= _error(step, exact)

    def _count(self, worker: Worker, warm_up: float) -> int:
        """Warm up, and return how many steps to take at a time."""
        start, last = time.perf_counter(), 0.0
        while not last or time.perf_counter() - start < warm_up:
            last = self._ask(worker, do="step", count=1)["seconds"][0]
        return max(1, min(100, int(_CHUNK_SECONDS[self._options["device"]] / last)))

    def measure(self, seconds: float) -> None:
        """Step the variants in turn for about ``seconds``, at least three times each."""
        counts: dict[str, int] = {}
        times: dict[str, list[float]] = {v: [] for v in self._workers}
        warm_up = 0.1 * seconds / len(self.rows)
        rounds, start = -1, 0.0
        while self._workers and (rounds < 3 or time.perf_counter() - start < seconds):
            for variant, worker in list(self._workers.items()):
                try:
                    if rounds < 0:
                        counts[variant] = self._count(worker, warm_up)
                    else:
                        found = self._ask(worker, do="step", count=counts[variant])
                        times[variant] += found["seconds"]
                except ConfigError as error:
                    self._fail(variant, error)
            start = time.perf_counter() if rounds < 0 else start
            rounds += 1
        for variant, worker in list(self._workers.items()):
            low, median, high = np.percentile(times[variant], (20, 50, 80)) * 1e3
            try:
                self.rows[variant] |= {
                    "median_ms": float(median),
                    "p20_ms": float(low),
                    "p80_ms": float(high),
                    "steps": rounds * counts[variant],
                    **self._ask(worker, do="report"),
                }
            except ConfigError as error:
                self._fail(variant, error)

    def finished(self) -> dict[str, dict[str, Any]]:
        """Return the rows, with the speed-ups over the published algorithm."""
        base = self.rows.get("published", {}).get("median_ms")
        for row in self.rows.values():
            median = row.get("median_ms")
            row["ratio"] = base / median if base and median else None
            row["error_size"] = self._size
        return self.rows

    def close(self) -> None:
        """End all processes."""
        workers = [*self._workers.values(), *self._exact.values()]
        for worker in workers:
            worker.finish()
        for worker in workers:
            worker.close()
        self._workers, self._exact = {}, {}
        self._folder.cleanup()


def _rows(
    case: StepCase,
    variants: Sequence[str],
    options: dict[str, Any],
    bandwidth: float,
    measured: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    floor = case.floor_bytes()
    common = {
        "case": case.name,
        "suite": options["suite"],
        "size": options["size"],
        "floor_mib": floor and floor / 2**20,
        "copy_gb_s": bandwidth / 1e9,
        "clock": options["clock"],
    }
    rows = []
    for variant in chosen(variants, case):
        row = {**common, "variant": variant, **measured[variant], "bytes_over_floor": None}
        if floor and "median_ms" in row:
            row["bytes_over_floor"] = row["median_ms"] / 1e3 * bandwidth / floor
        rows.append(row)
    return rows


def run_steps(
    cases: Sequence[StepCase],
    variants: Sequence[str],
    options: dict[str, Any],
    seconds: float,
    end: float = math.inf,
    before_timing: Callable[[], None] = lambda: None,
) -> Iterator[tuple[StepCase, list[dict[str, Any]]]]:
    """Measure the variants of cases that start at once; yield each with a row for each variant.

    Args:
        cases: The settings, of :func:`benchmarks.steps.sizes.batches`.
        variants: Names, in the order of the rows; a case has its own of them.
        options: suite, size, device, threads and clock, as
            :func:`benchmarks.steps.worker.begin` takes them.
        seconds: To measure a case for, after a warm-up of a tenth of it; each variant takes three
            steps at least.
        end: No variant is waited for after this value of ``time.monotonic()``.
        before_timing: Called when all processes are ready to be timed.
    """
    device = options["device"]
    bandwidth = copy_bandwidth(device)
    rounds: list[list[tuple[StepCase, list[str]]]] = [[]]
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    groups_left: dict[str, int] = {}
    first_steps: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    for case in cases:
        fitting, measured[case.name] = without_room(chosen(variants, case), case, device)
        groups = groups_of(fitting, case, device) if fitting else []
        first_steps[case.name], groups_left[case.name] = {}, len(groups)
        rounds += [[] for _ in range(len(groups) - len(rounds))]
        for number, group in enumerate(groups):
            rounds[number].append((case, group))
        if not groups:
            yield case, _rows(case, variants, options, bandwidth, measured[case.name])
    for some in rounds:
        with contextlib.ExitStack() as stack:
            opened = []
            for case, group in some:
                opened.append(_Steps(group, case, options, first_steps[case.name], end))
                stack.callback(opened[-1].close)
            for steps in opened:
                steps.check()
            before_timing()
            for steps in opened:
                steps.measure(seconds)
                case = steps.case
                measured[case.name] = steps.finished() | measured[case.name]
                groups_left[case.name] -= 1
                if not groups_left[case.name]:
                    yield case, _rows(case, variants, options, bandwidth, measured[case.name])
