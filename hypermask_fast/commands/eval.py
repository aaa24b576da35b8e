"""The command ``hypermask eval``: accuracies of a run, with the tasks known or inferred."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from hypermask_fast.commands.fitting import print_fitted
from hypermask_fast.errors import ConfigError
from hypermask_fast.inference.registry import make_scores, option_lines, scores

HELP = "test accuracy of a run's newest checkpoint"


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the options of the command, given the words after it."""
    parser.add_argument("run", type=Path, help="folder of the run, or of those of several seeds")
    parser.add_argument("--data-dir", help="folder of the data files [the run's]")
    parser.add_argument("--device", help="device [the run's]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    infer = parser.add_argument_group(
        "without task ids", "Infer the task of each test image, of those that were learned."
    )
    infer.add_argument(
        "--infer",
        metavar="SCORE,SCORE",
        help=f"what by: {', '.join(scores())}; or all of them: all",
    )
    infer.add_argument(
        "--score-option",
        action="append",
        metavar="NAME=VALUE",
        help="an option of the scores that have it; may be given again",
    )
    infer.add_argument(
        "--calibrate",
        action="store_true",
        help="put the scores of all tasks on one scale, chosen on validation data",
    )
    infer.add_argument(
        "--calibrate-on",
        metavar="SPLIT",
        help="validation, or train where the run held none out [validation]",
    )
    infer.add_argument(
        "--unknown-rate",
        type=float,
        metavar="RATE",
        help="answer 'unknown' below the score that this share of validation data is below",
    )
    infer.add_argument(
        "--batch-size",
        type=int,
        metavar="ROWS",
        help="images that run together, which matters for statistics of a batch [the run's]",
    )
    infer.add_argument(
        "--second-pass",
        action="store_true",
        help="take classes from another forward, of the images of each inferred task",
    )
    infer.add_argument(
        "--training-mode",
        action="store_true",
        help="take scores in training mode, where batch norm uses statistics of the batch",
    )
    if {"-h", "--help"} & set(words):  # which alone imports the scores
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = "\n  ".join(["options of scores:", *option_lines()])


_OF_INFERENCE = (
    "score_option",
    "calibrate",
    "calibrate_on",
    "unknown_rate",
    "batch_size",
    "second_pass",
    "training_mode",
)


def run(options: argparse.Namespace) -> int:
    """Evaluate, print, and return the exit status."""
    if options.infer is not None:
        return _infer(options)
    from hypermask_fast.finished.evaluated import evaluate
    from hypermask_fast.finished.inferred import loaded
    from hypermask_fast.studies.seeds import holds_seeds

    for name in _OF_INFERENCE:
        value = getattr(options, name)
        if value is not None and value is not False:
            raise ConfigError(
                f"--{name.replace('_', '-')} is for tasks that are inferred; give --infer too, "
                f"with one of {', '.join(scores())}"
            )
    if holds_seeds(options.run):
        found = evaluate(options.run, device=options.device, data_dir=options.data_dir)
        print(json.dumps(found.to_json(), indent=2) if options.json else found.table())
        return 0
    trainer = loaded(options.run, device=options.device, data_dir=options.data_dir)
    learner = trainer.learner
    names = [learner.tasks[task].name for task in learner.learned]
    accuracies = [trainer.evaluate(task) for task in learner.learned]
    mean = sum(accuracies) / len(accuracies)
    if options.json:
        each = [{"name": n, "accuracy": a} for n, a in zip(names, accuracies, strict=True)]
        print(json.dumps({"tasks": each, "mean": mean}, indent=2))
        return 0
    for name, accuracy in zip([*names, "mean"], [*accuracies, mean], strict=True):
        print(f"{name:<24} {accuracy:6.2f} %")
    return 0


def _infer(options: argparse.Namespace) -> int:
    from hypermask_fast.finished.inferred import infer

    names = [name.strip() for name in options.infer.split(",")]
    if options.calibrate_on is not None and not (options.calibrate or options.unknown_rate):
        raise ConfigError(
            f"--calibrate-on {options.calibrate_on} is for a calibration; give --calibrate too"
        )
    found = infer(
        options.run,
        make_scores(names, options.score_option or ()),
        device=options.device,
        data_dir=options.data_dir,
        batch_size=options.batch_size,
        calibrated=options.calibrate,
        calibrate_on=options.calibrate_on or "validation",
        unknown_rate=options.unknown_rate,
        training_mode=options.training_mode,
        second_pass=options.second_pass,
    )
    shown = found.single() or found
    if options.json:
        print(json.dumps(shown.to_json(), indent=2))
    else:
        print_fitted(shown.table())
    return 0
