"""A head that does not fit in one process's limit of memory is trained by four."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.limited import LIMIT, WIDTH

ROOT = Path(__file__).parents[2]
WORLD = 4
WORDS = [
    *("--tasks", "2", "--steps", "2", "--mlp-hidden", "1000,200", "--hidden", str(WIDTH)),
    *("--embedding-dim", "8", "--capacity", "2", "--device", "cpu", "--shard-head"),
    *("--memory-gib", "2"),
]
"""Of a run whose head has 265,802 x 1,401 numbers."""
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", str(WORLD)]


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


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with the limit for each of its processes."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))

    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA limits mappings on Linux only")
def test_the_command_trains_a_head_that_one_process_cannot_make(tmp_path: Path) -> None:
    package = ["-m", "hypermask_fast"]
    alone = command(tmp_path, *package, "train", *WORDS, "--out", "run")
    assert alone.returncode == 2
    assert "3 processes, shard_head=True" in alone.stderr
    trained = command(tmp_path, *TORCHRUN, *package, "train", *WORDS, "--out", "run")
    assert trained.returncode == 0, trained.stderr[-2000:]
    again = command(tmp_path, *TORCHRUN, *package, "resume", "run", "--memory-gib", "2")
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout == trained.stdout != ""
    whole = command(tmp_path, *package, "resume", "run", "--memory-gib", "2")
    assert whole.returncode == 2
    assert "or by torchrun in" in whole.stderr
