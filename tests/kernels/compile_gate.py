"""Compiles what the real launchers launch for GPUs that are not here, and reports what came out.

Run as a program, without ``TRITON_INTERPRET``: ``python tests/kernels/compile_gate.py --targets
sm_90 [--all]`` prints one JSON object a compiled kernel.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.static import TARGETS
from benchmarks.static.compile import compile_launch, use_target
from benchmarks.static.figures import static_figures
from benchmarks.static.report import launches
from tests.kernels.barriers import bare_barriers


def _compile(targets: Sequence[str], every: bool, rooms: Sequence[str] | None) -> int:
    failed = 0
    for target in targets:
        use_target(target)
        for name, launch in launches(rooms).items():
            for number, config in enumerate(launch.configs if every else launch.configs[:1]):
                row = {"target": target, "launch": name, "config": dict(config)}
                try:
                    kernels = compile_launch(launch, config)
                except Exception:
                    failed += 1
                    print(json.dumps({**row, "failed": traceback.format_exc(limit=-3)}), flush=True)
                    continue
                for place, kernel in enumerate(kernels):
                    facts = {"number": place, "kernel": kernel.name, "default": number == 0}
                    if "ptx" in kernel.asm:
                        # Each becomes HGMMA, which takes as long to disassemble as to make.
                        facts["wgmma"] = kernel.asm["ptx"].count("wgmma.mma_async")
                    if "amdgcn" in kernel.asm:
                        facts["bare_barriers"] = bare_barriers(kernel.asm["amdgcn"])
                    facts |= static_figures(kernel, target)
                    print(json.dumps({**row, **facts}), flush=True)
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["sm_90", "gfx942"])
    parser.add_argument("--all", action="store_true", help="all shipped configurations")
    parser.add_argument("--rooms", nargs="+", help="of benchmarks/launches (all)")
    arguments = parser.parse_args()
    sys.exit(min(1, _compile(arguments.targets, arguments.all, arguments.rooms)))
