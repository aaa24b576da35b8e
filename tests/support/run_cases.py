"""Short runs, whole and stopped, and what two folders of a run have in common."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from hypermask_fast.files import checkpoint
from hypermask_fast.records import accuracy_files
from hypermask_fast.runs import run
from hypermask_fast.settings.config import RunConfig

SHORT = {
    "tasks": 2,
    "steps": 6,
    "mlp_hidden": (6,),
    "embedding_dim": 3,
    "hidden": (4,),
    "capacity": 2,
    "log_every": 2,
    "checkpoint_every": 0.0,
    "device": "cpu",
}
STOP = 9
"""The step of both tasks that `stopped` ends after: the third of the second one."""


def short(**changes: object) -> RunConfig:
    return RunConfig.from_preset("split-digits", **{**SHORT, **changes})


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Leave plans and pictures out, half of the time of a short run."""
    patch.setattr(run, "plan", MagicMock())
    patch.setattr(accuracy_files, "write_heatmap", lambda path, *_: path.write_bytes(b""))


def stopped(config: RunConfig, path: Path, after: int = STOP) -> None:
    """Train until the checkpoint of a step is written, and no further."""
    original = checkpoint.save

    def save(folder: Path, step: int, *args: Any, **options: Any) -> Path:
        saved = original(folder, step, *args, **options)
        if step == after:
            raise SystemExit
        return saved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(SystemExit):
            run.train(config, path, show_progress=False)


def signal_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Send this process SIGTERM when the checkpoint of a step is to be written."""
    original = checkpoint.save

    def save(folder: Path, at: int, *args: Any, **options: Any) -> Path:
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(folder, at, *args, **options)

    patch.setattr(checkpoint, "save", save)


def final(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_latest(path / "checkpoints").tensors


def log(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, but what tells a time; NaN, which is not itself, as text."""
    rows = (json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in ("time", "steps_per_second")} for row in rows]


def assert_same_run(a: Path, b: Path, *, but: tuple[str, ...] = ()) -> None:
    """Every bit of two runs' last checkpoints and results is the same."""
    left, right = final(a), final(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
    for name in {"accuracy.csv", "config.toml"} - {*but}:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    if "metrics.jsonl" not in but:
        assert log(a) == log(b)
    with np.load(a / "accuracy.npz") as x, np.load(b / "accuracy.npz") as y:
        np.testing.assert_array_equal(x["accuracy"], y["accuracy"])


def contents(path: Path) -> dict[str, bytes | None]:
    """Every file of a folder but its lock, which tells who used it last; None of a folder."""
    return {
        str(file.relative_to(path)): file.read_bytes() if file.is_file() else None
        for file in sorted(path.rglob("*"))
        if file.name != ".lock"
    }


def edit_state(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the state of a run's newest checkpoint, with a digest that fits."""
    newest = checkpoint.latest(path / "checkpoints")
    assert newest is not None
    stored = json.loads((newest / "state.json").read_bytes())
    edit(stored)
    text = json.dumps(stored).encode()
    (newest / "state.json").write_bytes(text)
    index = json.loads((newest / "index.json").read_bytes())
    index["files"]["state.json"] = {
        "bytes": len(text),
        "sha256": hashlib.sha256(text).hexdigest(),
    }
    (newest / "index.json").write_text(json.dumps(index))
