"""The launchers compile for GPUs that are not here: no spills, shared memory, tensor cores."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

_WORKER = Path(__file__).with_name("compile_gate.py")
_LAUNCHES = Path(__file__).parents[2] / "benchmarks" / "launches"
_ROOMS = sorted({path.parent.name for path in _LAUNCHES.glob("*/[a-z]*.py")})
_SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
# Bytes: numbers that are stored before the loop over tiles and loaded after it.
_KEPT_OVER_LOOP = 16
# Kernels that multiply matrices.
_MATMULS = {"masked_linear", "masked_conv2d"}


def compiled(targets: Sequence[str], *options: str) -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, str(_WORKER), "--targets", *targets, *options],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    failed = [row for row in rows if "failed" in row]
    failures = [f"{row['target']} {row['launch']}: {row['failed']}" for row in failed]
    assert not failures, "\n".join(failures)
    assert result.returncode == 0, result.stderr
    return rows


def check(rows: Sequence[dict[str, Any]], room: str = "*") -> None:
    launches = {row["launch"].partition("/")[0] for row in rows}
    assert {path.stem for path in _LAUNCHES.glob(f"{room}/[a-z]*.py")} == launches
    for row in rows:
        where = f"{row['target']} {row['launch']} {row['kernel']} {row['config']}"
        assert row["shared"] <= _SHARED_LIMIT[row["target"]], f"{where}: {row['shared']} bytes"
        if row["default"]:
            spilled = _KEPT_OVER_LOOP if row["kernel"] == "_step_rows_wgmma_kernel" else 0
            assert row["spills"] <= spilled, f"{where}: {row['spills']} bytes spilled"
    if any(row["target"] == "sm_90" for row in rows):
        fast = {row["launch"].partition("/")[0] for row in rows if row.get("wgmma")}
        assert fast >= _MATMULS & launches


@pytest.mark.long
@pytest.mark.parametrize("room", _ROOMS)
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_default_configurations(target: str, room: str) -> None:
    check(compiled([target], "--rooms", room), room)


@pytest.mark.slow
def test_all_configurations() -> None:
    check(compiled(["sm_80", "sm_90", "sm_100", "gfx942"], "--all"))
