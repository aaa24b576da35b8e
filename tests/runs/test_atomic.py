"""Atomic writes: the new content, or all of the old."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hypermask_fast.errors import ConfigError
from hypermask_fast.runs.atomic import write_bytes_atomic, write_text_atomic


def test_atomic_write_replaces_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.csv"
    write_text_atomic(path, "old é")
    assert path.read_bytes() == b"old \xc3\xa9"
    with open(path, "rb") as reader:
        write_bytes_atomic(path, b"new\r\n\x00")
        assert reader.read() == b"old \xc3\xa9"
    assert path.read_bytes() == b"new\r\n\x00"

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ConfigError, match=r"result.csv \(5 bytes\): No space left on device"):
        write_bytes_atomic(path, b"third")
    assert path.read_bytes() == b"new\r\n\x00"
    assert [p.name for p in tmp_path.iterdir()] == ["result.csv"]
