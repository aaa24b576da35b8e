"""Settings of small runs, to plan, and the memory that they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hypermask_fast.settings.config import RunConfig

ROOT = Path(__file__).parents[2]


def small(**settings) -> RunConfig:
    defaults = {"tasks": 3, "steps": 2, "hidden": (5,), "device": "cpu"}
    if "network" not in settings:
        defaults["mlp_hidden"] = (8,)
    return RunConfig.from_options(**{**defaults, **settings})


# Resident memory of a run over that after a tiny one, which loads and sets up what every run does.
MEASURE = """
import json, sys, warnings
from pathlib import Path
from hypermask_fast.runs import run
from hypermask_fast.settings.config import RunConfig

def kib(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))

folder, settings = sys.argv[1], json.loads(sys.argv[2])
tiny = RunConfig.from_options(tasks=2, steps=2, mlp_hidden=(8,), hidden=(4,), device="cpu")
run.train(tiny, folder + "/tiny", show_progress=False)
before = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
run.train(RunConfig.from_options(**settings), folder + "/run", show_progress=False)
print(1024 * (kib("VmHWM") - before))
"""


def measured_peak(settings: dict[str, object], folder: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), json.dumps(settings)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )
    return int(done.stdout.split()[-1])
