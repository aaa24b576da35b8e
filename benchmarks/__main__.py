"""``python -m benchmarks run | tune | gpu | static | report``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import PARTS, run_parts
from benchmarks.report import render
from benchmarks.static import TARGETS
from benchmarks.steps.case import CLOCKS, SIZES, SUITES, VARIANTS
from benchmarks.suite import run_suite
from benchmarks.tuning.tune import TABLE, tune
from hypermask_fast.errors import ConfigError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, and write rows as JSON")
    run.add_argument("--suite", choices=SUITES, default="cpu", help="(cpu)")
    run.add_argument(
        "--case", nargs="+", metavar="NAME", help="or a pattern such as hnet-*; default: all"
    )
    run.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: all")
    run.add_argument("--size", choices=SIZES, default="full")
    run.add_argument(
        "--seconds", type=float, help="to measure a step for (20, 3 on a GPU; kernels a twelfth)"
    )
    run.add_argument(
        "--minutes", type=float, help="the run ends after it, with what it has (none; 7.5 on a GPU)"
    )
    run.add_argument("--resume", action="store_true", help="only cases that the file has not")
    run.add_argument(
        "--clock",
        choices=CLOCKS,
        default="elapsed",
        help="(elapsed); processor, of all threads, is less disturbed by other processes",
    )
    run.add_argument("--threads", type=int, default=0, help="of a worker; 0 (default): torch's")
    run.add_argument("--json", type=Path, metavar="FILE", help="for the rows; default: none")
    tuning = commands.add_parser("tune", help="time the kernels' configurations on this GPU")
    tuning.add_argument("--only", metavar="STEM", help="one module of launches, as mask_logits")
    tuning.add_argument("--json", type=Path, default=TABLE, metavar="FILE")
    tuning.add_argument("--minutes", type=float, default=6.0, help="no launch begins after (6)")
    tuning.add_argument("--resume", action="store_true", help="only sizes that the table has not")
    _add_gpu(commands.add_parser("gpu", help="run all that needs a GPU, what matters most first"))
    static = commands.add_parser(
        "static", help="compile the launches for a GPU that is not here, and say how fast they are"
    )
    static.add_argument("--target", default="sm_90", choices=TARGETS, help="(sm_90)")
    static.add_argument(
        "--launch", nargs="+", default=[], metavar="PATTERN", help="as step_rows/*; default: all"
    )
    static.add_argument("--all-configs", action="store_true", help="else the default of each")
    static.add_argument(
        "--where", action="store_true", help="and the instructions that are most waited for"
    )
    static.add_argument("--json", type=Path, metavar="FILE", help="for the rows; default: none")
    report = commands.add_parser("report", help="print the markdown table of recorded rows")
    report.add_argument("file", type=Path)
    return parser


def _add_gpu(gpu: argparse.ArgumentParser) -> None:
    parts = ", ".join(f"{name} ({seconds:.0f})" for name, seconds in PARTS.items())
    gpu.description = (
        "Run all that needs a GPU, what matters most first. After ten minutes there are: whether "
        "each kernel is right on this device (check), and, not yet tuned, the steps of Permuted "
        "MNIST at t = 0, 9 and 99 and of Split MNIST, the head's passes, masks and masked layers, "
        "each beside torch's own ways (first). Then come the tests of compiled kernels, the "
        "tuner, the whole suite and compute-sanitizer. Where a command may take ten minutes: "
        "--minutes 9.5 --resume, three times."
    )
    gpu.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for logs and rows")
    gpu.add_argument(
        "--parts",
        nargs="+",
        metavar="NAME[=SECONDS]",
        help=f"of {parts}, in brackets their seconds; default: all but racecheck",
    )
    gpu.add_argument(
        "--minutes", type=float, default=28.0, help="of this call; no part goes on longer (28)"
    )
    gpu.add_argument(
        "--resume", action="store_true", help="leave out parts that ended in --out before"
    )


def _static(args: argparse.Namespace) -> str:
    try:
        from benchmarks.static.report import run_static
    except ModuleNotFoundError as error:
        raise ConfigError(f"static needs {error.name}, which is not installed") from error
    return run_static(args.target, args.launch, args.all_configs, args.json, args.where)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "run":
            print(render(run_suite(args)))
        elif args.command == "tune":
            tune(args.only, args.json, args.minutes, args.resume)
        elif args.command == "gpu":
            return 0 if run_parts(args.parts, args.out, args.minutes, args.resume) else 1
        elif args.command == "static":
            print(_static(args))
        else:
            print(render(json.loads(args.file.read_text())))
    except (ConfigError, OSError, json.JSONDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
