"""The launchers compile for GPUs that are not here: no spills, shared memory, tensor cores."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.barriers import bare_barriers

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

_WORKER = Path(__file__).with_name("compile_gate.py")
_LAUNCHES = Path(__file__).parents[2] / "benchmarks" / "launches"
_SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
# Bytes that a default may spill: where fewer programs would cost more, and numbers that are stored
# before the loop over tiles and loaded after it.
_SPILLS = {
    ("sm_100", "_step_ahead_kernel"): 40,
    ("sm_100", "masked_conv2d_gradients_kernel"): 8,
    ("sm_90", "_step_rows_wgmma_kernel"): 16,
}
# Kernels that multiply matrices.
_MATMULS = {"masked_linear", "masked_conv2d"}


def environment() -> dict[str, str]:
    """Of a process that compiles."""
    return {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


def compiled(targets: Sequence[str], *options: str) -> list[dict[str, Any]]:
    result = subprocess.run(
        [sys.executable, str(_WORKER), "--targets", *targets, *options],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    failed = [row for row in rows if "failed" in row]
    failures = [f"{row['target']} {row['launch']}: {row['failed']}" for row in failed]
    assert not failures, "\n".join(failures)
    assert result.returncode == 0, result.stderr
    return rows


def check(rows: Sequence[dict[str, Any]]) -> None:
    launches = {row["launch"].partition("/")[0] for row in rows}
    assert {path.stem for path in _LAUNCHES.glob("*/[a-z]*.py")} == launches
    for row in rows:
        where = f"{row['target']} {row['launch']} {row['kernel']} {row['config']}"
        assert row["shared"] <= _SHARED_LIMIT[row["target"]], f"{where}: {row['shared']} bytes"
        assert not row.get("bare_barriers"), f"{where}: a barrier that waits for no memory"
        if row["default"]:
            allowed = _SPILLS.get((row["target"], row["kernel"]), 0)
            assert row["spills"] <= allowed, f"{where}: {row['spills']} bytes spilled"
    if any(row["target"] == "sm_90" for row in rows):
        fast = {row["launch"].partition("/")[0] for row in rows if row.get("wgmma")}
        assert fast >= _MATMULS


def not_worse(rows: Sequence[dict[str, Any]]) -> None:
    from benchmarks.static.report import RECORD, worse

    sentences, reason = worse(rows, json.loads(RECORD.read_text()))
    assert not sentences, "\n".join(sentences)
    if reason:
        warnings.warn(reason, stacklevel=1)


@pytest.mark.long
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_default_configurations(target: str) -> None:
    rows = compiled([target])
    check(rows)
    if target == "sm_90":
        not_worse(rows)


@pytest.mark.slow
def test_all_configurations() -> None:
    check(compiled(["sm_80", "sm_90", "sm_100", "gfx942"], "--all"))


_WRITE, _WAIT, _BARRIER = "\tds_write_b32 v1, v2", "\ts_waitcnt vmcnt(3) lgkmcnt(0)", "\ts_barrier"


@pytest.mark.parametrize(
    ("lines", "bare"),
    [
        pytest.param([_WRITE, _WAIT, _BARRIER], 0, id="waits"),
        pytest.param([_WRITE, "\tv_add_u32 v1, v2", _BARRIER], 1, id="bare"),
        pytest.param(["\tds_add_u32 v1, v2", "\ts_waitcnt lgkmcnt(1)", _BARRIER], 1, id="some"),
        pytest.param([_WRITE, _WAIT, _WRITE, _BARRIER, _BARRIER], 2, id="again"),
        pytest.param([_WRITE, ".LBB0_1:  ; %loop", _BARRIER], 0, id="another-block"),
        pytest.param(["; ds_write_b32 in a comment", _BARRIER], 0, id="comment"),
    ],
)
def test_barriers_that_wait_for_no_memory_are_found(lines: list[str], bare: int) -> None:
    assert bare_barriers("\n".join(lines)) == bare


@pytest.mark.slow
def test_replayed_figures(tmp_path: Path) -> None:
    path = tmp_path / "static.json"
    command = [sys.executable, "-m", "benchmarks", "static", "--json", str(path)]
    subprocess.run(command, check=True, capture_output=True, env=environment())
    rows = json.loads(path.read_text())["rows"]
    not_worse(rows)
    # Of a launch of several kernels the first.
    times = {row["launch"]: row for row in reversed(rows) if "model_us" in row}
    rows_, width, earlier, copied = 2_036_010, 100, 9, 4.2e12
    whole = (24 * rows_ * width + 4 * earlier * rows_ + 28 * rows_) / copied
    assert times["step_rows/permuted-9"]["copy_us"] == pytest.approx(1e6 * whole, rel=0.01)
    # At the roofline: with many loads in flight only the bus is waited for.
    for name in ("mask_logits/permuted", "factored_adam/permuted"):
        assert 1 <= times[name]["model_us"] / times[name]["copy_us"] < 1.1
