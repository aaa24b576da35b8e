"""The command line: train, compare, plan, resume, eval, export, verify, doctor."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hypermask_fast import cli_eval, cli_export, cli_verify
from hypermask_fast.errors import ConfigError, HypermaskError
from hypermask_fast.factories import folder_importable
from hypermask_fast.runs.console import lasting_streams
from hypermask_fast.settings import comparison_line
from hypermask_fast.settings.command_line import (
    Parser,
    add_arguments,
    from_arguments,
    unknown_option,
)

if TYPE_CHECKING:
    from hypermask_fast.runs.comparison_result import Comparison
    from hypermask_fast.runs.run import RunResult

_DEFAULT_PRESET = "split-digits"


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory-gib",
        type=float,
        metavar="GIB",
        help="memory of the device to count on [what it has left]",
    )


def _memory_bytes(options: argparse.Namespace) -> int | None:
    gib = options.memory_gib
    if gib is None:
        return None
    if not 0 < gib <= 2**53:
        raise ConfigError(f"memory-gib={gib} is out of range; give more than 0, at most {2**53}")
    return int(gib * 2**30)


def _add_settings(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    _add_memory(parser)
    add_arguments(parser, words, preset=_DEFAULT_PRESET)


def _add_train(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    parser.description = (
        f"Train a sequence of tasks. Without options: --preset {_DEFAULT_PRESET}. The settings are "
        "those of the chosen method and network; in brackets: their values where none is given. "
        "--network and --scenario take MODULE:FUNCTION too, of a module in the current folder or "
        "on Python's path: FUNCTION(input_shape, num_outputs) returns an nn.Module, and "
        "FUNCTION() a Scenario, a list of Tasks, or a dict of (train, test) by task name; "
        "parameters of these names, and data_dir and seed of the latter, get the run's values, "
        "others those of --network-options and --scenario-options."
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run [runs/PRESET-TIME-LETTERS]"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="runs with seeds SEED to SEED+N-1, in folders seed-S of --out [1]",
    )
    _add_settings(parser, words)


def _add_compare(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    parser.description = (
        "Train each method with each seed, and make tables and a picture of what they reach. A "
        "method takes the settings of the preset METHOD-PRESET where there is one, else PRESET's "
        "if that is of the method, else PRESET's scenario, network and training with its own "
        "defaults. --steps 9 changes the runs of all methods that have the setting, --hnet.steps 9 "
        "those of one. The same command again goes on with a comparison that was stopped."
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the comparison, with runs in METHOD/seed-S [runs/compare-PRESET-TIME-"
        "LETTERS]",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_memory(parser)
    comparison_line.add_arguments(parser, words, preset=_DEFAULT_PRESET)


def _add_plan(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    parser.description = (
        "Tell what memory `hypermask train` takes with the same options, and on a disk its "
        "checkpoints, without making or reading anything but what functions of your own make. The "
        "status is 2 where it does not fit."
    )
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")
    _add_settings(parser, words)


def _add_resume(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument(
        "run", type=Path, help="folder of the run, of those of several seeds, or of a comparison"
    )
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="go on with settings in config.toml that were changed, and record them",
    )
    _add_memory(parser)


def _options(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; only the command that it gives makes its options."""
    parser = Parser(
        prog="hypermask", description="Continual learning with hypernetwork-generated masks."
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name, command in _COMMANDS.items():
        made = commands.add_parser(name, help=command.help)
        made.set_defaults(parser=made)
        if words and words[0] == name:
            command.add_arguments(made, words[1:])
    options, left_over = parser.parse_known_args(words)
    if left_over:
        raise unknown_option(left_over[0], options.parser)
    return options


def _train(options: argparse.Namespace) -> int:
    from hypermask_fast.runs import run, seeds

    config, memory = from_arguments(options), _memory_bytes(options)
    out = options.out or _new_folder(config.preset or config.scenario.name)
    if options.seeds < 1:
        raise ConfigError(f"seeds={options.seeds} is out of range; give at least 1")
    if options.seeds == 1:
        _show(run.train(config, out, memory=memory))
    else:
        _show_all(seeds.train(config, out, options.seeds, memory=memory))
    return 0


def _new_folder(name: str) -> Path:
    # Runs that start in one second have folders of their own.
    letters = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return Path("runs") / f"{name.replace(':', '-')}-{letters}"


def _show_all(results: Iterable[RunResult]) -> None:
    """Show each run when it has ended, and then what all have in common."""
    import numpy as np

    from hypermask_fast.runs import metrics

    summaries = []
    for result in results:
        _show(result)
        summaries.append(metrics.summary(result.accuracy))
    print(f"\n{len(summaries)} seeds, mean +/- standard deviation:")
    for name in summaries[0]:
        values = np.array([summary[name] for summary in summaries])
        print(f"  {name:<20} {values.mean():8.2f} +/- {values.std(ddof=1):.2f}")


def _compare(options: argparse.Namespace) -> int:
    from hypermask_fast.runs import comparison

    config, memory = comparison_line.from_arguments(options), _memory_bytes(options)
    out = options.out or _new_folder(f"compare-{options.preset}")
    return _show_comparison(comparison.compare(config, out, memory=memory), out, options.json)


def _show_comparison(found: Comparison, folder: Path, as_json: bool = False) -> int:
    """Print a comparison; the status is 2 where a run failed."""
    from hypermask_fast.runs.comparison_files import text_table

    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print(f"{text_table(found)}\nresults: {folder}")
    for failed in found.failed:
        print(f"hypermask: {failed.method}, seed {failed.seed}: {failed.failure}", file=sys.stderr)
    return 2 if found.failed else 0


def _plan(options: argparse.Namespace) -> int:
    from hypermask_fast.planning.plan import plan

    found = plan(from_arguments(options), memory=_memory_bytes(options))
    print(json.dumps(found.to_json(), indent=2) if options.json else found.table())
    found.require()
    return 0


def _resume(options: argparse.Namespace) -> int:
    from hypermask_fast.runs import comparison, run, seeds

    memory = _memory_bytes(options)
    if comparison.holds_comparison(options.run):
        if options.allow_changes:
            raise ConfigError(
                f"--allow-changes is for runs, and {options.run} holds a comparison, whose runs "
                "have the same settings; leave it out"
            )
        return _show_comparison(comparison.resume(options.run, memory=memory), options.run)
    how = {"memory": memory, "allow_changes": options.allow_changes}
    if seeds.holds_seeds(options.run):
        _show_all(seeds.resume(options.run, **how))
    else:
        _show(run.resume(options.run, **how))
    return 0


def _add_doctor(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="check every Triton kernel on each CUDA device, as their first use does once",
    )


def _doctor(options: argparse.Namespace) -> int:
    from hypermask_fast.doctor import examine

    return examine(sys.stdout, kernels=options.kernels)


def _show(result: RunResult) -> None:
    from hypermask_fast.runs.report import format_changes, format_matrix

    print(format_matrix(result.accuracy, result.task_names))
    for line in format_changes(result.changes):
        print(line)
    print(f"results: {result.folder}")


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as a line of the command, without the place in the code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(
            f"hypermask: warning: {message}", file=sys.stderr
        )
        yield


class _Command(NamedTuple):
    """A command: what it does, its help, and what adds its options, given the words after it."""

    run: Callable[[argparse.Namespace], int]
    help: str
    add_arguments: Callable[[argparse.ArgumentParser, Sequence[str]], None]


_COMMANDS = {
    "train": _Command(_train, "train a sequence of tasks", _add_train),
    "compare": _Command(_compare, "train several methods, and compare them", _add_compare),
    "plan": _Command(_plan, "the memory of a run, before it starts", _add_plan),
    "resume": _Command(_resume, "continue a run, or several", _add_resume),
    "eval": _Command(
        cli_eval.run, "test accuracy of a run's newest checkpoint", cli_eval.add_arguments
    ),
    "export": _Command(
        cli_export.run, "the plain network of a task, in a file", cli_export.add_arguments
    ),
    "verify": _Command(
        cli_verify.run, "whether learned tasks are what they were", cli_verify.add_arguments
    ),
    "doctor": _Command(_doctor, "versions, devices and a self-test", _add_doctor),
}


def _run(arguments: Sequence[str]) -> int:
    try:
        with _plain_warnings():
            options = _options(arguments)
            return _COMMANDS[options.command].run(options)
    except HypermaskError as error:
        print(f"hypermask: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0; 2 after an error; 128 + n after signal n.

    A standard stream that is closed, or that nobody reads any more, changes nothing else.
    """
    with lasting_streams() as output, folder_importable():
        status = _run(sys.argv[1:] if arguments is None else arguments)
        output.flush()
        if output.failure is not None:
            print(
                f"hypermask: cannot print: {output.failure.strerror}; free space, or print "
                "elsewhere",
                file=sys.stderr,
            )
        return status if output.failure is None else status or 2
