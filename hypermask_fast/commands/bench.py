"""The command ``hypermask bench``: a training step beside others, phase by phase."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from hypermask_fast.benching.names import AGAINST, CLOCKS
from hypermask_fast.commands.fitting import print_fitted
from hypermask_fast.commands.options import DEFAULT_PRESET, add_console, add_settings
from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.settings.command_line import Parser, from_arguments
from hypermask_fast.settings.config import RunConfig, presets

HELP = "a training step beside the published algorithm's, phase by phase"

_RESNET = re.compile(r"resnet(\d+)")


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the options of the command, given the words after it."""
    parser.description = (
        "Measure a training step of the last task with the settings of `hypermask train`, beside "
        "other ways to take it, in turn and from one state: each phase, the whole, and what both "
        "are off from float64. Earlier tasks are learned in name alone and inputs are random: "
        "nothing is read or trained."
    )
    parser.add_argument(
        "--against",
        default="torch",
        metavar="NAMES",
        help="what to measure beside, with commas: torch (the published step of HyperMask in plain "
        "PyTorch, of other methods and settings the learner in an ordinary loop) and hypnettorch "
        "(the same on its hypernetwork, where it is installed) [torch]",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="--network by another name, in the method's preset that has it where nothing else "
        "says what is learned; resnet20, resnet32, ... are --network resnet of so many layers",
    )
    parser.add_argument(
        "--phase", default="", metavar="NAME", help="of a task, such as exssnet's mask [the first]"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, metavar="S", help="to take steps in turn for [20]"
    )
    parser.add_argument(
        "--clock",
        default="elapsed",
        metavar="NAME",
        help="elapsed, or processor: the time of the process alone, on a busy CPU [elapsed]",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_console(parser)
    modelled = _modelled(words)
    parser.set_defaults(modelled=modelled)
    add_settings(parser, [*words, *(f"--{k}={v}" for k, v in modelled.items())])


def _modelled(words: Sequence[str]) -> dict[str, str]:
    """Return the options that --model stands for, given the words of the command."""
    first = Parser(prog="hypermask bench", add_help=False, argument_default=argparse.SUPPRESS)
    for name in ("model", "network", "resnet-n", "method", "preset", "scenario", "config"):
        first.add_argument(f"--{name}")
    given = vars(first.parse_known_args(words)[0])
    if "model" not in given:
        return {}
    model = given["model"]
    for name in ("network", "resnet_n"):
        if name in given:
            raise ConfigError(
                f"--model {model} and --{name.replace('_', '-')} {given[name]} are both given; "
                "give one of the two"
            )
    found = {"network": model}
    depth = _RESNET.fullmatch(model)
    if depth:
        blocks, rest = divmod(int(depth[1]) - 2, 6)
        if rest or blocks < 1:
            raise ConfigError(
                f"model={model!r} has a number of layers that is not 6 n + 2; give resnet20, "
                "resnet32, resnet44, ..."
            )
        found = {"network": "resnet", "resnet_n": str(blocks)}
    if given.keys().isdisjoint(("preset", "scenario", "config")):
        preset = _preset_with(given.get("method", "hypermask"), found["network"])
        found |= {"preset": preset} if preset else {}
    return found


def _preset_with(method: str, network: str) -> str:
    """Return the preset of a method that has a network, the default one first; "" if none."""
    names = sorted(presets(), key=lambda name: name != DEFAULT_PRESET)
    configs = ((name, RunConfig.from_preset(name)) for name in names)
    return next((n for n, c in configs if (c.method_name, c.network.name) == (method, network)), "")


def _checked_names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in AGAINST:
            raise ConfigError(
                f"against={text!r} names {name!r}, which is unknown{nearest(name, AGAINST)}; give "
                f"{' or '.join(AGAINST)}, or both with a comma"
            )
    if not names:
        raise ConfigError(f"against={text!r} names nothing; give {' or '.join(AGAINST)}")
    return names


def _check(options: argparse.Namespace) -> None:
    if not 0 < options.seconds <= 86400:
        raise ConfigError(
            f"seconds={options.seconds} is out of range; give more than 0, at most 86400"
        )
    if options.clock not in CLOCKS:
        raise ConfigError(
            f"clock={options.clock!r} is unknown{nearest(options.clock, CLOCKS)}; give "
            f"{' or '.join(CLOCKS)}"
        )
    if options.csv is not None and not options.csv.parent.is_dir():
        raise ConfigError(
            f"--csv {options.csv}: the folder {options.csv.parent} does not exist; make it, or "
            "give another"
        )


def run(options: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    against = _checked_names(options.against)
    _check(options)
    vars(options).update(options.modelled)
    config = from_arguments(options)
    from hypermask_fast.benching.measure import bench
    from hypermask_fast.files.atomic import write_text_atomic
    from hypermask_fast.runs.devices import device_named
    from hypermask_fast.training.busy import showing_stages

    device = device_named(config.run.device)
    chosen = {name: getattr(options, name) for name in ("seconds", "clock", "phase")}
    with showing_stages():
        found = bench(config, device, against=against, **chosen)
    if options.csv is not None:
        write_text_atomic(options.csv, found.to_csv())
    if options.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_fitted(found.table())
    return 0
