"""Figures of a kernel's compiled object, and their comparison with recorded ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import triton

from benchmarks.__main__ import main
from benchmarks.static.figures import code_size, resident
from benchmarks.static.report import RECORD, launches, render, worse, write

ROW: dict[str, Any] = {
    **{"launch": "step_rows/permuted-9", "number": 0, "kernel": "_step_rows_kernel"},
    **{"registers": 128, "spills": 0, "shared": 2048, "programs": 4, "model_us": 1300.0},
}


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "static.json"
    write([ROW, {**ROW, "number": 1}], "sm_90", path, every=True)
    found: dict[str, Any] = json.loads(path.read_text())
    assert found["rows"] == [ROW, {**ROW, "number": 1}]
    return found


def test_some_launches_are_recorded_beside_the_others(tmp_path: Path) -> None:
    path = tmp_path / "static.json"
    first = [{**ROW, "launch": name} for name in ("b", "a", "c")]
    write(first, "sm_90", path, every=True)
    write([{**ROW, "launch": "b", "spills": 8}], "sm_90", path, every=False)
    rows = json.loads(path.read_text())["rows"]
    assert [(row["launch"], row["spills"]) for row in rows] == [("a", 0), ("b", 8), ("c", 0)]
    write([{**ROW, "launch": "b"}], "sm_80", path, every=False)
    assert len(json.loads(path.read_text())["rows"]) == 1


@pytest.mark.parametrize(
    ("figure", "value", "is_worse"),
    [
        *(("registers", 140, False), ("registers", 141, True), ("registers", 64, False)),
        *(("spills", 4, True), ("programs", 3, True), ("programs", 8, False)),
        *(("model_us", 1429.0, False), ("model_us", 1431.0, True), ("shared", 4096, True)),
    ],
)
def test_a_figure_may_be_a_tenth_worse(
    record: dict[str, Any], figure: str, value: float, is_worse: bool
) -> None:
    sentences, reason = worse([{**ROW, figure: value}], record)
    assert reason is None
    assert len(sentences) == is_worse
    if is_worse:
        for part in ("step_rows/permuted-9", f"{figure} is {value}", str(ROW[figure]), "--json"):
            assert part in sentences[0]


def test_rows_of_another_triton_do_not_compare(record: dict[str, Any]) -> None:
    record["triton"] = "0.1"
    sentences, reason = worse([{**ROW, "registers": 255}], record)
    assert not sentences
    assert reason is not None
    assert "0.1" in reason
    assert triton.__version__ in reason


def test_what_is_new_or_not_replayed_is_not_compared(record: dict[str, Any]) -> None:
    new = {**ROW, "launch": "step_rows/new", "registers": 255}
    static = {key: value for key, value in ROW.items() if key != "model_us"}
    assert worse([new, static], record) == ([], None)


def test_every_default_launch_is_recorded() -> None:
    recorded = {row["launch"] for row in json.loads(RECORD.read_text())["rows"]}
    assert recorded == set(launches())


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "programs"),
    [
        *((128, 2048, 4, 4), (129, 0, 4, 3), (168, 0, 8, 1), (64, 0, 8, 4), (255, 45056, 4, 2)),
        *((32, 0, 4, 16), (16, 0, 1, 32), (32, 116_000, 4, 1), (32, 115_000, 4, 2)),
    ],
)
def test_programs_of_a_multiprocessor(
    registers: int, shared: int, warps: int, programs: int
) -> None:
    assert resident("sm_90", registers, shared, warps) == programs


def test_instructions_are_counted_in_the_object() -> None:
    names = b"\0.text.kernel\0.shstrtab\0"
    header = bytearray(64)
    struct.pack_into("<Q", header, 40, 64 + len(names))
    struct.pack_into("<3H", header, 58, 64, 2, 1)
    text = struct.pack("<IIQQQQ", 1, 1, 0, 0, 0, 48) + bytes(24)
    table = struct.pack("<IIQQQQ", 14, 3, 0, 0, 64, len(names)) + bytes(24)
    assert code_size(bytes(header) + names + text + table) == 3


def test_a_row_without_a_replay_has_no_times() -> None:
    cells = render([{**ROW, "not_covered": "FANCY"}]).splitlines()[-1]
    assert cells.startswith(
        "| step_rows/permuted-9 _step_rows_kernel | 128 | 0 | 2048 | 4 | - | - |"
    )
    known = {"copy_us": 1195.6, "loads": {"4": 21.0, "16": 55.0}, "barriers": 16.0}
    assert "| 21x4 55x16 | 16.0 | 1196 | 1300 |" in render([{**ROW, **known}])


def test_kernels_are_not_compiled_in_the_interpreter(capsys: pytest.CaptureFixture[str]) -> None:
    if not triton.knobs.runtime.interpret:
        pytest.skip("kernels are compiled")
    assert main(["static", "--launch", "step_rows/permuted-9"]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
