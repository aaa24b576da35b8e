"""The metrics log: round trips, positions, and what a killed process leaves."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hypermask_fast.errors import CheckpointError, DataError
from hypermask_fast.runs import metrics_log
from hypermask_fast.runs.metrics_log import MetricsLog


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


def test_position_and_truncate_resume_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    log = MetricsLog(path)
    assert log.position() == 0
    for step in range(5):
        log.write({"step": step})
    position = log.position()
    assert position == path.stat().st_size  # on the disk, not in a buffer
    log.write({"step": 5})
    log.flush()
    log.write({"step": 6})
    log.close()
    log.close()
    with MetricsLog(path) as log:
        log.truncate(position)
        assert log.position() == position
        log.write({"step": "resumed"})
    assert [r["step"] for r in metrics_log.read(path)] == [0, 1, 2, 3, 4, "resumed"]
    with MetricsLog(path) as log:
        log.truncate(0)
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
        assert log.position() == 12
        assert sizes == [12]


@pytest.mark.parametrize(
    ("position", "message"),
    [
        pytest.param(13, "has 12 bytes, the checkpoint expects at least 13", id="shorter"),
        pytest.param(5, "no line end at byte 5", id="inside-a-line"),
    ],
)
def test_truncate_refuses_another_file(tmp_path: Path, position: int, message: str) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"a": 100}\n\n')
    with MetricsLog(path) as log, pytest.raises(CheckpointError, match=message):
        log.truncate(position)
    assert path.stat().st_size == 12


@pytest.mark.parametrize("tail", [1, 100, 64 * 2**10, 200_000])
def test_half_written_last_line(tmp_path: Path, tail: int) -> None:
    path = tmp_path / "m"
    whole = b'{"a": 1}\n{"a": 2}\n'
    path.write_bytes(whole + b'{"a": "' + b"x" * tail)
    assert metrics_log.read(path) == [{"a": 1}, {"a": 2}]
    with MetricsLog(path) as log:
        assert path.read_bytes() == whole
        log.write({"a": 3})
    assert path.read_bytes() == whole + b'{"a": 3}\n'


def test_only_a_half_written_line(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"a"')
    MetricsLog(path).close()
    assert path.read_bytes() == b""


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
