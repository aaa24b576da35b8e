"""A head that does not fit in one process's limit of memory is trained by four."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORLD = 4


def run(folder: Path, world: int, call: str) -> list[subprocess.CompletedProcess[str]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.limited", *map(str, (rank, world, folder, call))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    done = []
    try:
        for process in started:
            out, err = process.communicate(timeout=500)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in started:
            process.kill()
    return done


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA limits mappings on Linux only")
def test_four_processes_train_a_head_that_one_cannot_make(tmp_path: Path) -> None:
    (alone,) = run(tmp_path, 1, "alone")
    assert alone.returncode != 0
    assert "memory" in alone.stderr
    first, second = (run(tmp_path, WORLD, call) for call in ("train", "load"))
    for done in (*first, *second):
        assert done.returncode == 0, done.stderr[-2000:]
    # Losses of the step after the one that was saved: they do not depend on the optimizer.
    assert first[0].stdout == second[0].stdout != ""
