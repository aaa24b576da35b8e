"""Prints in which layout a step and its targets form logits, for the configurations that ship.

Run as a program, without ``TRITON_INTERPRET``: ``python tests/kernels/logit_layouts.py WIDTH ...
[--all]`` prints one JSON object for each width, type of targets and moments, and configuration, the
default or all. Kernels are compiled as far as layouts are chosen.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.nvidia.compiler import CUDABackend

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.launches.head.step_rows import step_inputs
from benchmarks.launches.launch import floats
from benchmarks.static.compile import compile_only, use_target
from hypermask_fast.kernels import tuning
from hypermask_fast.kernels.head import step, step_runs

_PLACES = {
    "_step_rows_kernel": r'"tt\.reduce"[^\n]*axis = 1.*?\}\) : \((.*?)\) ->',
    "step_runs_kernel": r"= (?:ttng\.warp_group_dot|tt\.dot) [^\n]* : (tensor<[^\n]*)",
}
"""Where logits are formed, first of all that looks so: a sum over columns, or a product."""


class _LayoutsChosenError(Exception):
    """Carries a kernel's code once its layouts are chosen."""


def _stop(self: Any, module: Any, metadata: dict[str, Any], *_: Any) -> None:
    raise _LayoutsChosenError(str(module))


def _layout(run: Any, kernel: str) -> str:
    """Return the types of what forms logits, their layouts written out."""
    try:
        with mock.patch.object(CUDABackend, "make_llir", _stop):
            run()
    except _LayoutsChosenError as stopped:
        code = str(stopped)
    except Exception as error:
        # Newer versions of Triton say in their own words where a stage failed.
        if not isinstance(error.__cause__, _LayoutsChosenError):
            raise
        code = str(error.__cause__)
    else:
        raise RuntimeError("the kernel was not compiled")
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\..*)$", code, re.MULTILINE))
    found = re.search(_PLACES[kernel], re.sub(r" loc\(.*\)", "", code), re.DOTALL)
    if found is None:
        raise RuntimeError(f"{kernel} forms no logits that were found")
    return re.sub(r"#\w+", lambda name: layouts.get(name[0], name[0]), found[1])


def _print(widths: list[int], every: bool) -> None:
    use_target("sm_90")
    triton.knobs.compilation.always_compile = True
    for width in widths:
        runs = step_runs.takes(width)
        name, configs = (
            ("step_rows_runs", step_runs.CONFIGS) if runs else ("step_rows", step.CONFIGS)
        )
        kernel = "step_runs_kernel" if runs else "_step_rows_kernel"
        for dtype in (torch.float32, torch.bfloat16):
            for config in configs if every else configs[:1]:
                with ExitStack() as stack:
                    stack.enter_context(compile_only([]))
                    stack.enter_context(tuning.forced(name, config))
                    with torch.device("cuda"):
                        tensors, numbers = step_inputs(100_000, width, 3, dtype)
                        hidden = floats(3, width)
                    options = {"dtype": dtype, "processors": 132}
                    layouts = {
                        "step": _layout(lambda: step.step_rows(*tensors, **numbers), kernel),  # noqa: B023
                        "targets": _layout(
                            lambda: step.earlier_logits(*tensors[:2], hidden, **options),  # noqa: B023
                            kernel,
                        ),
                    }
                row = {"width": width, "dtype": str(dtype), "config": dict(config)}
                print(json.dumps({**row, **layouts}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("widths", nargs="+", type=int)
    parser.add_argument("--all", action="store_true", help="all shipped configurations")
    arguments = parser.parse_args()
    _print(arguments.widths, arguments.all)
