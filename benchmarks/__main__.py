"""``python -m benchmarks run | tune | report``."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import hypnettorch
from benchmarks.ahead import log
from benchmarks.cases import SIZES, SUITES, Case, find_cases
from benchmarks.engines import VARIANTS
from benchmarks.kernel_cases import KernelCase, find_kernel_cases
from benchmarks.kernel_runner import KernelBench, compile_ahead
from benchmarks.machine import environment
from benchmarks.report import render
from benchmarks.runner import head_parameters, run_case
from benchmarks.tune import TABLE, tune
from hypermask_fast.errors import ConfigError

# Steps of the gpu suite that come before its kernels, and what starting a step's processes takes.
_IMPORTANT = ("permuted-mnist-t9", "split-mnist-t4", "permuted-mnist-t99")
_START_SECONDS, _START_PARAMETERS = 20.0, 5e7


def _chosen(args: argparse.Namespace) -> tuple[list[Case], list[KernelCase]]:
    """Return the step cases and kernel cases that are asked for, the most important first."""
    if args.suite == "cpu":
        return find_cases(args.suite, args.case, args.size), []
    if args.case is None:
        steps = find_cases(args.suite, None, args.size)
        steps.sort(key=lambda case: case.name not in _IMPORTANT)
        return steps, find_kernel_cases(None, args.size)
    prefixes = ("head-", "masks-", "linear-", "conv-")
    kernels = [name for name in args.case if name.startswith(prefixes)]
    steps_named = [name for name in args.case if name not in kernels]
    return (
        find_cases(args.suite, steps_named, args.size) if steps_named else [],
        find_kernel_cases(kernels, args.size) if kernels else [],
    )


class _Rows:
    """Rows so far; the file has all of them after each case."""

    def __init__(self, args: argparse.Namespace, device: str) -> None:
        self.rows: list[dict[str, Any]] = []
        self._file, self._where = args.json, environment(device, args.threads)
        default = 7.5 if device == "cuda" else math.inf
        self._end = time.monotonic() + 60 * (args.minutes or default)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.monotonic()

    def add(self, name: str, measure: Callable[[], list[dict[str, Any]]], least: float) -> None:
        """Measure a case, unless fewer than ``least`` seconds are left."""
        if self.left() < least:
            log(f"{name}: not measured, out of time")
            return
        log(name)
        try:
            found = measure()
        except ConfigError as error:
            log(f"{name}: {error}")
            return
        self.rows += [{**row, **self._where} for row in found]
        self._file.write_text(json.dumps(self.rows, indent=1) + "\n")


def _run(args: argparse.Namespace) -> None:
    device = "cuda" if args.suite == "gpu" and torch.cuda.is_available() else "cpu"
    if args.suite == "gpu" and device == "cpu" and args.size == "full":
        raise ConfigError("torch sees no CUDA device for the gpu suite; use --size tiny or a GPU")
    if not args.json.parent.is_dir():
        raise ConfigError(f"--json is {args.json}, whose folder does not exist; make it first")
    options: dict[str, Any] = {
        "suite": args.suite,
        "size": args.size,
        "device": device,
        "threads": args.threads,
    }
    seconds = args.seconds or (3.0 if device == "cuda" else 20.0)
    # There is no native pass to switch off on a GPU, only there are steps compiled and captured,
    # and hypnettorch is optional.
    absent = {"ours-fallback" if device == "cuda" else "ours-eager"}
    absent |= set() if hypnettorch.available() else {"hypnettorch"}
    names = args.variants or [v for v in VARIANTS if v not in absent]
    steps, kernels = _chosen(args)
    results = _Rows(args, device)

    def take_steps(cases: Sequence[Case]) -> None:
        for case in cases:
            least = seconds
            if device == "cuda":
                least += _START_SECONDS + head_parameters(case) / _START_PARAMETERS
            results.add(case.name, partial(run_case, case, names, options, seconds), least)

    first = [case for case in steps if case.name in _IMPORTANT]
    take_steps(first)
    if kernels:
        if device == "cuda" and args.size == "full":
            compile_ahead(kernels, results.left() / 3)
        with KernelBench(options, seconds / 12) as bench:
            for case in kernels:
                results.add(case.name, partial(bench.run_case, case), seconds)
    take_steps([case for case in steps if case not in first])
    print(render(results.rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, and write rows as JSON")
    run.add_argument("--suite", choices=SUITES, required=True)
    run.add_argument(
        "--case", nargs="+", metavar="NAME", help="default: all; of kernels also as linear-*"
    )
    run.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: all")
    run.add_argument("--size", choices=SIZES, default="full")
    run.add_argument(
        "--seconds", type=float, help="to measure a step for (20, 3 on a GPU; kernels a twelfth)"
    )
    run.add_argument(
        "--minutes", type=float, help="no case begins that would end after (none; 7.5 on a GPU)"
    )
    run.add_argument("--threads", type=int, default=0, help="of a worker; 0 (default): torch's")
    run.add_argument("--json", type=Path, required=True, metavar="FILE")
    tuning = commands.add_parser("tune", help="time the kernels' configurations on this GPU")
    tuning.add_argument("--only", metavar="STEM", help="one module of benchmarks/launches")
    tuning.add_argument("--json", type=Path, default=TABLE, metavar="FILE")
    tuning.add_argument("--minutes", type=float, default=6.0, help="no launch begins after (6)")
    report = commands.add_parser("report", help="print the markdown table of recorded rows")
    report.add_argument("file", type=Path)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "run":
            _run(args)
        elif args.command == "tune":
            tune(args.only, args.json, args.minutes)
        else:
            print(render(json.loads(args.file.read_text())))
    except (ConfigError, OSError, json.JSONDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
