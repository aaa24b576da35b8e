"""Checkpoints after kill -9, at random moments and at every file operation of a save."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# One process imports torch and forks the writers that are killed.
_SUPERVISOR = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from hypermask_fast.files import checkpoint as cp

torch.set_num_threads(1)
mode, root = sys.argv[1], Path(sys.argv[2])
save = cp.save
if sys.argv[3] == "rows":
    from hypermask_fast.files import row_checkpoint
    from hypermask_fast.head.shard import Place
    from hypermask_fast.training.divided import Part

    def save(folder, step, tensors, state):
        rows = {"x": Part(tensors.pop("x"), 0, 0, 20_000)}
        row_checkpoint.save(folder, step, tensors, rows, state, Place(0, 1))
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}

def content(step, mark=0):
    return {"x": torch.full((20_000,), step), "m": torch.tensor(mark)}, {"copy": step, "mark": mark}

def fork(work):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child

def report(folder):
    loaded = cp.load_latest(folder)
    for path in folder.glob("step-*"):
        cp.load(path)  # no half folder under a valid name
    values = loaded.tensors["x"].unique().tolist()
    print(json.dumps({
        "same": values == [loaded.step] == [loaded.state["copy"]],
        "step": loaded.step,
        "mark": [int(loaded.tensors["m"]), loaded.state["mark"]],
    }), flush=True)
    return loaded.step

if mode == "random":
    folder, rng = root / "random", random.Random(3)
    last = 0
    save(folder, 0, *content(0))
    for _ in range(12):
        def loop():
            for step in range(last + 1, last + 10_000):
                save(folder, step, *content(step))
        child = fork(loop)
        while cp._found(folder)[0][0] == last:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        last = report(folder)
else:
    again = int(mode)  # the step that the killed process saves over steps 1 and 2
    for point in range(1000):
        folder = root / f"{mode}-{point}"
        save(folder, 1, *content(1))
        save(folder, 2, *content(2))
        def one():
            seen = [0]
            def hook(event, args):
                if event in EVENTS:
                    if seen[0] == point:
                        os.kill(os.getpid(), signal.SIGKILL)
                    seen[0] += 1
            sys.addaudithook(hook)
            save(folder, again, *content(again, 1))
        _, status = os.waitpid(fork(one), 0)
        report(folder)
        save(folder, 4, *content(4, 2))
        report(folder)
        names = sorted(entry.name for entry in folder.iterdir())
        shutil.rmtree(folder)
        print(json.dumps({"names": names, "status": status}), flush=True)
        if not os.WIFSIGNALED(status):
            break
"""


def _supervise(mode: str, root: Path, kind: str = "whole") -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", _SUPERVISOR, mode, str(root), kind],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.long
def test_kill_at_random_moments(tmp_path: Path) -> None:
    reports = _supervise("random", tmp_path)
    assert len(reports) == 12
    assert all(report["same"] for report in reports)
    steps = [report["step"] for report in reports]
    assert steps == sorted(set(steps))  # every writer got further


@pytest.mark.long
@pytest.mark.parametrize(
    ("again", "kind"),
    [
        pytest.param(3, "whole", id="next-step"),
        pytest.param(2, "whole", id="the-same-step-again"),
        pytest.param(2, "rows", id="rows-of-processes"),
    ],
)
def test_kill_at_every_file_operation(tmp_path: Path, again: int, kind: str) -> None:
    lines = _supervise(str(again), tmp_path, kind)
    rounds = [lines[i : i + 3] for i in range(0, len(lines), 3)]
    assert len(rounds) > 12  # mkdir, 3 files, 2 folders, renames, removals
    seen = []
    for killed, following, end in rounds:
        assert killed["same"]
        assert following["same"]
        assert (killed["step"], killed["mark"]) in [(2, [0, 0]), (again, [1, 1])]
        assert (following["step"], following["mark"]) == (4, [2, 2])
        kept = max(killed["step"], 2)
        assert end["names"] == [f"step-{kept:09d}", "step-000000004"]
        seen.append(killed["mark"][0])
    assert seen == sorted(seen)  # old content up to one moment, the new from there
    assert set(seen) == {0, 1}
    assert [os.WIFSIGNALED(end["status"]) for *_, end in rounds] == [True] * (len(rounds) - 1) + [
        False
    ]
