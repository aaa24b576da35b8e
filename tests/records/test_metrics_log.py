"""The metrics log: round trips, positions, and what a killed process leaves."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hypermask_fast.errors import CheckpointError, DataError
from hypermask_fast.records import metrics_log
from hypermask_fast.records.metrics_log import MetricsLog, Position


def test_metrics_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records: list[dict[str, Any]] = [
        {"step": 1, "loss": 0.1, "name": "é\n", "deep": {"a": [1, None, True]}},
        {"loss": math.nan, "list": [math.inf, -math.inf]},
    ]
    with MetricsLog(path) as log:
        for record in records:
            log.write(record)
        log.write({"f": np.float32(0.1), "i": np.int64(3), "t": (1, 2)})
    lines = path.read_bytes().splitlines()
    assert json.loads(lines[1]) == {"loss": "nan", "list": ["inf", "-inf"]}
    first, second, third = metrics_log.read(path)
    assert first == records[0]
    assert math.isnan(second["loss"])
    assert second["list"] == [math.inf, -math.inf]
    assert third == {"f": float(np.float32(0.1)), "i": 3, "t": [1, 2]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        pytest.param({"a": [torch.ones(())]}, r"record\['a'\]\[0\] has type Tensor", id="tensor"),
        pytest.param([1], "record is a list, expected a dict", id="list"),
    ],
)
def test_metrics_refuse_what_is_not_json(tmp_path: Path, record: Any, message: str) -> None:
    with MetricsLog(tmp_path / "m") as log, pytest.raises(TypeError, match=message):
        log.write(record)
    assert metrics_log.read(tmp_path / "m") == []


def test_a_position_continues_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    log = MetricsLog(path)
    assert log.position().size == 0
    for step in range(5):
        log.write({"step": step})
    position = log.position()
    assert position.size == path.stat().st_size  # on the disk, not in a buffer
    assert position.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    log.write({"step": 5})
    log.flush()
    log.write({"step": 6})
    log.close()
    log.close()
    with MetricsLog(path, position) as log:
        assert log.position() == position
        log.write({"step": "resumed"})
        assert log.position().sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [r["step"] for r in metrics_log.read(path)] == [0, 1, 2, 3, 4, "resumed"]
    MetricsLog(path).close()
    assert path.read_bytes() == b""


def test_position_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    real, sizes = os.fsync, []

    def fsync(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with MetricsLog(path) as log:
        log.write({"step": 1})
        assert path.stat().st_size == 0  # buffered
        assert sizes == []
        assert log.position().size == 12
        assert sizes == [12]


_CONTENT = b'{"a": 100}\n\n{"a'


@pytest.mark.parametrize(
    ("position", "message"),
    [
        pytest.param(Position(16, None), "has 15 bytes, the checkpoint expects at", id="shorter"),
        pytest.param(Position(5, None), "no line end at byte 5", id="inside-a-line"),
        pytest.param(
            Position(12, hashlib.sha256(b'{"a": 101}\n\n').hexdigest()),
            "was altered: the SHA-256 of its first 12 bytes is",
            id="altered",
        ),
    ],
)
def test_another_file_is_refused_and_left_alone(
    tmp_path: Path, position: Position, message: str
) -> None:
    path = tmp_path / "m"
    path.write_bytes(_CONTENT)
    with pytest.raises(CheckpointError, match=message):
        MetricsLog(path, position)
    assert path.read_bytes() == _CONTENT
    path.unlink()
    with pytest.raises(CheckpointError, match=r"metrics file .* is missing, the checkpoint"):
        MetricsLog(path, position)
    assert list(tmp_path.iterdir()) == []


def test_a_log_of_several_blocks_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_log, "_BLOCK", 5)
    path = tmp_path / "m"
    with MetricsLog(path) as log:
        log.write({"step": 1})
        position = log.position()
        log.write({"step": 2})
    with MetricsLog(path, position) as log:
        assert log.position() == position


def test_half_written_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": "x')
    assert metrics_log.read(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("line", [b'{"a": ', b"[1]", b"\xff\xfe", b""])
def test_damaged_line_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(DataError, match=r"line 2 of .* expected a JSON object"):
        metrics_log.read(path)


def test_missing_metrics(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        metrics_log.read(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"cannot open the metrics file .*No such file"):
        MetricsLog(tmp_path / "absent" / "m")


def test_metrics_on_a_full_disk(tmp_path: Path) -> None:
    log = MetricsLog("/dev/full")
    log.write({"a": 1})
    with pytest.raises(CheckpointError, match=r"cannot write the metrics file .*No space left"):
        log.flush()
    with pytest.raises(CheckpointError, match="No space left"):
        log.close()
