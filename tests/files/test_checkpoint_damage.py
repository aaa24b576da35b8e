"""Checkpoints that are damaged, absent or half replaced, and disks that refuse the data."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hypermask_fast.errors import CheckpointError
from hypermask_fast.files import checkpoint as cp


def test_replaced_folder_counts_only_where_a_kill_left_it_alone(tmp_path: Path) -> None:
    step, aside = tmp_path / "step-000000005", tmp_path / ".replaced-step-000000005"
    cp.save(tmp_path, 5, {"x": torch.tensor(1)}, {})
    step.rename(aside)
    assert cp.latest(tmp_path) == aside
    assert int(cp.load_latest(tmp_path).tensors["x"]) == 1
    cp.save(tmp_path, 6, {"x": torch.tensor(6)}, {})
    assert int(cp.load(step).tensors["x"]) == 1
    shutil.copytree(step, aside)
    cp.save(tmp_path / "other", 5, {"x": torch.tensor(2)}, {}).rename(tmp_path / "new")
    shutil.rmtree(step)
    (tmp_path / "new").rename(step)
    shutil.rmtree(tmp_path / "step-000000006")
    assert int(cp.load_latest(tmp_path).tensors["x"]) == 2


def _edit_index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        index = json.loads((path / "index.json").read_text())
        (path / "index.json").write_text(json.dumps(change(index)))

    return edit


def _flip_last_byte(file: str) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        data = bytearray((path / file).read_bytes())
        data[-1] ^= 1
        (path / file).write_bytes(data)

    return flip


_DAMAGE = [
    pytest.param(shutil.rmtree, "step-000000002 does not exist", id="no-folder"),
    pytest.param(lambda p: (p / "index.json").unlink(), "index.json is missing", id="no-index"),
    pytest.param(
        lambda p: (p / "state.json").unlink(), "state.json is missing", id="no-file"
    ),
    pytest.param(
        lambda p: os.truncate(p / "tensors.safetensors", 100),
        r"tensors.safetensors has 100 bytes, expected \d{4}",
        id="truncated",
    ),
    pytest.param(
        lambda p: os.truncate(p / "state.json", 0), "state.json has 0 bytes", id="emptied"
    ),
    pytest.param(
        _flip_last_byte("tensors.safetensors"),
        r"tensors.safetensors was altered: its SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}",
        id="altered-tensors",
    ),
    pytest.param(_flip_last_byte("state.json"), "state.json was altered", id="altered-state"),
    pytest.param(
        lambda p: (p / "index.json").write_bytes(b"\x80\x02}q\x00."),
        "index.json is not JSON",
        id="pickle",
    ),
    pytest.param(_edit_index(lambda i: [i]), "index.json has the format", id="foreign-list"),
    pytest.param(
        _edit_index(lambda i: {**i, "format": "other"}),
        "index.json has the format 'other', expected 'hypermask_fast'",
        id="foreign-name",
    ),
    pytest.param(
        _edit_index(lambda i: {**i, "version": 3}),
        "has format version 3, expected at most 2; upgrade hypermask_fast",
        id="newer-version",
    ),
    pytest.param(_edit_index(lambda i: {**i, "version": ""}), "json was altered", id="bad-version"),
    pytest.param(
        _edit_index(lambda i: {**i, "files": {"../x": {}}}), "json was altered", id="bad-files"
    ),
    pytest.param(
        _edit_index(lambda i: {**i, "files": dict.fromkeys(i["files"])}),
        "index.json was altered",
        id="bad-entries",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), _DAMAGE)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    path = cp.save(tmp_path, 2, {"x": torch.ones(500)}, {"a": 1})
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        cp.load(path)
    assert str(path) in str(caught.value)
    assert ";" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_latest_names_the_newest_older_checkpoint_that_is_whole(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        cp.save(tmp_path, step, {"x": torch.tensor(step)}, {}, keep=4)
    for step in (3, 4):
        _flip_last_byte("tensors.safetensors")(tmp_path / f"step-{step:09d}")
    with pytest.raises(CheckpointError) as caught:
        cp.load_latest(tmp_path)
    newest, older = tmp_path / "step-000000004", tmp_path / "step-000000002"
    assert f"{newest / 'tensors.safetensors'} was altered" in str(caught.value)
    assert f"{older} is older and whole: move {newest} away" in str(caught.value)
    for step in (1, 2):
        shutil.rmtree(tmp_path / f"step-{step:09d}")
    with pytest.raises(CheckpointError, match="no older checkpoint is whole"):
        cp.load_latest(tmp_path)


@pytest.mark.parametrize("name", ["absent", ""])
def test_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / "step-12").mkdir()
    (tmp_path / "step-000000012 (copy)").mkdir()
    (tmp_path / "step-000000099").write_text("a file")
    assert cp.latest(tmp_path / name) is None
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        cp.load_latest(tmp_path / name)


def _assert_only(folder: Path, step: int) -> None:
    assert [p.name for p in folder.iterdir()] == [f"step-{step:09d}"]
    assert int(cp.load_latest(folder).tensors["x"]) == step


def test_free_space_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cp.save(tmp_path, 1, {"x": torch.tensor(1)}, {})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4_000_000))
    with pytest.raises(
        CheckpointError, match=r"needs (\d+) bytes and .* has 4000000 bytes free"
    ) as caught:
        cp.save(tmp_path, 2, {"x": torch.zeros(1_000_000)}, {})
    assert 4_000_000 < int(str(caught.value).split()[3]) < 6_000_000
    assert str(tmp_path) in str(caught.value)
    _assert_only(tmp_path, 1)


@pytest.mark.parametrize("call", range(6))
def test_disk_full_at_each_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    cp.save(tmp_path, 1, {"x": torch.tensor(1)}, {})
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if call == 5:  # three files, the temporary folder, the folder: no sixth call
        cp.save(tmp_path, 2, {"x": torch.tensor(2)}, {}, keep=1)
        assert len(calls) == 5
        return
    with pytest.raises(CheckpointError, match="No space left on device; free space"):
        cp.save(tmp_path, 2, {"x": torch.tensor(2)}, {}, keep=1)
    if call < 4:
        _assert_only(tmp_path, 1)
    else:  # the last fsync comes after the rename: both are whole
        assert [cp.load(p).step for p in sorted(tmp_path.iterdir())] == [1, 2]


def test_write_refused_by_the_system(tmp_path: Path) -> None:
    cp.save(tmp_path, 1, {"x": torch.tensor(1)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(CheckpointError, match=r"step-000000002 of about .* File too large"):
            cp.save(tmp_path, 2, {"x": torch.zeros(2**19)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    _assert_only(tmp_path, 1)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Not a directory"):
        cp.save(tmp_path / "file" / "checkpoints", 1, {}, {})


def test_interrupt_leaves_no_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cp.save(tmp_path, 1, {"x": torch.tensor(1)}, {})

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cp.save(tmp_path, 2, {"x": torch.tensor(2)}, {})
    _assert_only(tmp_path, 1)


def test_old_checkpoint_that_cannot_be_removed_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cp.save(tmp_path, 1, {"x": torch.tensor(1)}, {})

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EBUSY, "busy")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", rmtree)
        with pytest.warns(RuntimeWarning, match=r"step-000000001: busy; remove it by hand"):
            cp.save(tmp_path, 2, {"x": torch.tensor(2)}, {}, keep=1)
    assert cp.load_latest(tmp_path).step == 2
    cp.save(tmp_path, 3, {"x": torch.tensor(3)}, {}, keep=1)
    _assert_only(tmp_path, 3)
