"""The command ``hypermask export``: the plain network of one task in a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from hypermask_fast.commands.fitting import print_fitted

HELP = "the plain network of a task, in a file"


def add_arguments(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Add the options of the command."""
    parser.description = (
        "Write the network of one learned task to a file that needs no hypernetwork: a program of "
        "torch.export, an ONNX model, or the weights alone. Times and sizes are printed beside "
        "those of the learner."
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--task", required=True, metavar="NAME|ID", help="the task")
    parser.add_argument(
        "--format",
        default="torch",
        metavar="FORMAT",
        help="torch, onnx (needs onnx and onnxscript) or safetensors [torch]",
    )
    parser.add_argument(
        "--sparse",
        metavar="2:4",
        help="2:4: set 2 of every 4 inputs' weights to 0, and measure accuracies before and after",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the file [RUN/exported/task-ID.EXTENSION]"
    )
    parser.add_argument("--force", action="store_true", help="replace the file where it exists")
    parser.add_argument("--data-dir", help="folder of the data files [the run's]")
    parser.add_argument("--device", help="device [the run's]")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Export, print, and return the exit status."""
    from hypermask_fast.finished.exporting import export

    found = export(
        options.run,
        options.task,
        options.format,
        out=options.out,
        sparse=options.sparse,
        force=options.force,
        device=options.device,
        data_dir=options.data_dir,
    )
    if options.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_fitted(found.table())
    return 0
