"""What a kill leaves behind in a run's folder is gone after the next resume."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hypermask_fast.files.atomic import write_bytes_atomic
from hypermask_fast.runs import run
from hypermask_fast.settings.config import RunConfig


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_write_leaves_nothing_once_another_process_has_written(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.csv"
    child = os.fork()
    if child == 0:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        try:
            write_bytes_atomic(path, b"half")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    write_bytes_atomic(path, b"whole")
    assert [file.name for file in tmp_path.iterdir()] == ["accuracy.csv"]


def test_resuming_a_finished_run_removes_what_its_last_save_left(tmp_path: Path) -> None:
    path = tmp_path / "run"
    small = {"tasks": 1, "steps": 2, "mlp_hidden": (4,), "embedding_dim": 2, "hidden": (3,)}
    config = RunConfig.from_preset("split-digits", device="cpu", **small)
    run.train(config, path, show_progress=False)
    before = sorted(file for file in path.rglob("*"))
    # A kill while an old checkpoint is removed, and one while the next is written.
    for name in (".tmp-replaced-step-000000002", ".tmp-step-000000003"):
        (path / "checkpoints" / name).mkdir()
        (path / "checkpoints" / name / "tensors.safetensors").write_bytes(b"half")
    run.resume(path, show_progress=False)
    assert sorted(file for file in path.rglob("*")) == before
