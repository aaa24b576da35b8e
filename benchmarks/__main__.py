"""``python -m benchmarks run | report``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import hypnettorch
from benchmarks.cases import SIZES, SUITES, find_cases
from benchmarks.engines import VARIANTS
from benchmarks.report import render
from benchmarks.runner import environment, run_case
from hypermask_fast.errors import ConfigError


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
    where = environment(device, args.threads)
    # There is no native pass to switch off on a GPU, and hypnettorch is optional.
    absent = {"ours-fallback"} if device == "cuda" else set()
    absent |= set() if hypnettorch.available() else {"hypnettorch"}
    names = args.variants or [v for v in VARIANTS if v not in absent]
    rows: list[dict[str, Any]] = []
    for case in find_cases(args.suite, args.case, args.size):
        print(f"{case.name}: {', '.join(names)}", file=sys.stderr, flush=True)
        rows += [{**row, **where} for row in run_case(case, names, options, args.seconds)]
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(render(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, and write rows as JSON")
    run.add_argument("--suite", choices=SUITES, required=True)
    run.add_argument("--case", nargs="+", metavar="NAME", help="default: all of the suite")
    run.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: all")
    run.add_argument("--size", choices=SIZES, default="full")
    run.add_argument("--seconds", type=float, default=20.0, help="to measure a case for (20)")
    run.add_argument("--threads", type=int, default=0, help="of a worker; 0 (default): torch's")
    run.add_argument("--json", type=Path, required=True, metavar="FILE")
    report = commands.add_parser("report", help="print the markdown table of recorded rows")
    report.add_argument("file", type=Path)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "run":
            _run(args)
        else:
            print(render(json.loads(args.file.read_text())))
    except (ConfigError, OSError, json.JSONDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
