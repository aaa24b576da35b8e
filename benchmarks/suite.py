"""Runs a suite within a time, the most important cases first, and writes rows as they come."""

from __future__ import annotations

import argparse
import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.ahead import in_a_line, log
from benchmarks.harness.files import write_json
from benchmarks.harness.machine import environment
from benchmarks.kernels.case import KernelCase
from benchmarks.kernels.catalogue import find_kernel_cases
from benchmarks.kernels.runner import KernelBench, compile_ahead
from benchmarks.steps.case import VARIANTS, StepCase
from benchmarks.steps.catalogue import find_cases
from benchmarks.steps.runner import run_steps
from benchmarks.steps.sizes import batches, room_of, start_seconds
from hypermask_fast.benching import hypnettorch
from hypermask_fast.errors import ConfigError

_MINUTES = 7.5
_FIRST = (
    *("permuted-mnist-t0", "permuted-mnist-t9", "permuted-mnist-t99", "split-mnist-t4"),
    *("hnet-split-mnist-t4", "hnet-split-mnist-full-t4", "hyperinterval-split-mnist-t4"),
)
# Of the other methods, after the kernels and the largest target.
_METHODS = ("hnet-*", "hyperinterval-*", "supsup-*", "exssnet-*", "inference-*")
# The kernels that come before the largest target, in the order of their worth.
_KERNELS = ("head-*", "masks-*", "linear-*-w4096-*", "conv-*", "linear-*-w1024-*")
_LARGEST = ("vit-*",)
_AHEAD_SECONDS, _LEAST_SECONDS = 100.0, 5.0


class _OutOfTime(Exception):
    """What follows is left out."""


class Results:
    """Rows so far, which are in the file whenever it is read.

    Args:
        file: Of rows, replaced whole after every case; None: none.
        where: What every row tells of the machine and the versions.
        before: Rows to keep, such as those of an earlier run.
        minutes: After which the run is to end.
    """

    def __init__(
        self,
        file: Path | None,
        where: dict[str, Any],
        before: Sequence[dict[str, Any]] = (),
        minutes: float = math.inf,
    ) -> None:
        self.rows = [row for row in before if "skipped" not in row]
        self._file, self._where = file, where
        self.end = time.monotonic() + 60 * minutes

    def has(self, name: str) -> bool:
        """Return whether a variant of the case was measured."""
        return any(row["case"] == name and "median_ms" in row for row in self.rows)

    def add(self, case: StepCase | KernelCase, rows: Sequence[dict[str, Any]]) -> None:
        """Take a case's rows, in place of those there are."""
        self.rows = [row for row in self.rows if row["case"] != case.name]
        self.rows += [{**row, **self._where} for row in rows]
        if self._file is not None:
            write_json(self._file, self.rows)

    def skip(self, case: StepCase | KernelCase, reason: str, options: dict[str, Any]) -> None:
        """Tell why a case was not measured."""
        log(f"{case.name}: not measured, {reason}")
        if not self.has(case.name):
            common = {key: options[key] for key in ("suite", "size")}
            self.add(case, [{"case": case.name, "variant": "-", "skipped": reason, **common}])

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic()


class _Suite:
    """Takes cases until the time is over."""

    def __init__(
        self, results: Results, options: dict[str, Any], variants: Sequence[str], seconds: float
    ) -> None:
        self._results, self._options, self._variants = results, options, variants
        self._seconds, self._device = seconds, options["device"]

    def _needs(self, seconds: float) -> None:
        if self._results.left() < seconds:
            raise _OutOfTime("out of time")

    def _take(self, cases: Sequence[Any], measure: Callable[[], None]) -> None:
        """Measure cases; those that end without a row are noted with the reason."""
        reason = "out of time"
        try:
            measure()
        except _OutOfTime:
            pass
        except Exception as error:
            # The other cases have a machine that may well do.
            reason = in_a_line(error)
        names = {row["case"] for row in self._results.rows}
        for case in cases:
            if case.name not in names:
                self._results.skip(case, reason, self._options)

    def steps(
        self,
        cases: Sequence[StepCase],
        before_timing: Callable[[], None] = lambda: None,
        without: str = "",
    ) -> None:
        """Measure training steps, but not of the variant ``without``."""
        variants = [v for v in self._variants if v != without]
        for batch in batches(cases, variants, self._device) if cases else ():

            def measure(batch: Sequence[StepCase] = batch) -> None:
                start = max(map(start_seconds, batch)) if self._device == "cuda" else 0.0
                self._needs(start + self._seconds)
                log(", ".join(case.name for case in batch))
                arguments = (batch, variants, self._options, self._seconds)
                for case, rows in run_steps(*arguments, self._results.end, before_timing):
                    self._results.add(case, rows)

            self._take(batch, measure)

    def kernels(self, cases: Sequence[KernelCase], bench: KernelBench) -> None:
        """Measure kernels by themselves."""
        for case in cases:

            def measure(case: KernelCase = case) -> None:
                self._needs(_LEAST_SECONDS if self._device == "cuda" else 0.0)
                log(case.name)
                self._results.add(case, bench.run_case(case))

            self._take([case], measure)


def _fitting(cases: Sequence[Any], patterns: Sequence[str]) -> list[Any]:
    return [c for p in patterns for c in cases if fnmatch(c.name, p)]


def _without(cases: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    names = {case.name for case in others}
    return [case for case in cases if case.name not in names]


def _chosen(
    suite: str, names: list[str] | None, size: str
) -> tuple[list[StepCase], list[KernelCase]]:
    """Return the step cases and kernel cases that are asked for."""
    if suite == "cpu":
        return find_cases(suite, names, size), []
    if names is None:
        return find_cases(suite, None, size), find_kernel_cases(None, size)
    prefixes = ("head-", "masks-", "linear-", "conv-")
    kernels = [name for name in names if name.startswith(prefixes)]
    steps = [name for name in names if name not in kernels]
    return (
        find_cases(suite, steps, size) if steps else [],
        find_kernel_cases(kernels, size) if kernels else [],
    )


def _device(args: argparse.Namespace) -> str:
    device = "cuda" if args.suite == "gpu" and torch.cuda.is_available() else "cpu"
    if args.suite == "gpu" and device == "cpu" and args.size == "full":
        raise ConfigError("torch sees no CUDA device for the gpu suite; use --size tiny or a GPU")
    if device == "cuda" and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise ConfigError("TRITON_INTERPRET is set and would interpret the kernels; unset it")
    if args.json is not None and not args.json.parent.is_dir():
        raise ConfigError(f"--json is {args.json}, whose folder does not exist; make it first")
    return device


def run_suite(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what the command line asks for, and return the rows of the file.

    Raises:
        ConfigError: There is no such case, device or folder.
    """
    device = _device(args)
    options = {key: getattr(args, key) for key in ("suite", "size", "threads", "clock")}
    options["device"] = device
    seconds = args.seconds or (3.0 if device == "cuda" else 20.0)
    # There is no native pass to switch off on a GPU, only there are steps compiled and captured,
    # and hypnettorch is optional.
    absent = {"ours-fallback" if device == "cuda" else "ours-eager"}
    absent |= set() if hypnettorch.available() else {"hypnettorch"}
    variants = args.variants or [v for v in VARIANTS if v not in absent]
    steps, kernels = _chosen(args.suite, args.case, args.size)
    before = []
    if args.resume and args.json is not None and args.json.exists():
        before = json.loads(args.json.read_text())
    minutes = args.minutes or (_MINUTES if device == "cuda" else math.inf)
    results = Results(args.json, environment(device, args.threads), before, minutes)
    steps = [case for case in steps if not results.has(case.name)]
    kernels = [case for case in kernels if not results.has(case.name)]
    suite = _Suite(results, options, variants, seconds)
    if args.suite == "cpu":
        suite.steps(steps)
        return results.rows
    first, largest = _fitting(steps, _FIRST), _fitting(steps, _LARGEST)
    core = _fitting(kernels, _KERNELS)
    order = [*core, *_without(kernels, core)]
    end = min(time.monotonic() + _AHEAD_SECONDS, results.end)
    ahead = threading.Thread(target=compile_ahead, args=(order, end), daemon=True)
    if device == "cuda" and args.size == "full" and order:
        room_of(device)
        ahead.start()

    def wait() -> None:
        if ahead.ident is not None:
            ahead.join()

    # The steps' processes start meanwhile; nothing is timed before it is over.
    suite.steps(first, wait)
    wait()
    with KernelBench(options, seconds / 12, results.end) as bench:
        suite.kernels(core, bench)
        # One process alone fills the memory with it: once is enough.
        suite.steps(largest, without="ours-eager")
        suite.kernels(_without(kernels, core), bench)
    rest = _without(steps, [*first, *largest])
    methods = _fitting(rest, _METHODS)
    suite.steps([*methods, *_without(rest, methods)])
    log(f"{results.left():.0f} s left")
    return results.rows
