"""Atomic writes: the new content, or all of the old."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from hypermask_fast.errors import ConfigError
from hypermask_fast.files.atomic import write_bytes_atomic, write_text_atomic


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


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_folder_that_cannot_be_synced_is_no_failure_but_a_failed_sync_is(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        right(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "result.csv"
    if number == errno.EIO:
        with pytest.raises(ConfigError, match="Input/output error"):
            write_bytes_atomic(path, b"new")
    else:
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"new"
