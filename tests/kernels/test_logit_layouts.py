"""A step forms the logits of earlier tasks as their targets were formed, in every layout.

Where the layouts differ, so does the order of sums, and the residuals of a head that did not change
are not exactly 0; the interpreter has no layouts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

_WORKER = Path(__file__).with_name("logit_layouts.py")


def assert_equal_layouts(*arguments: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, str(_WORKER), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert rows
    for row in rows:
        assert row["step"] == row["targets"], f"H = {row['width']}, {row['dtype']} {row['config']}"


@pytest.mark.long
def test_default_configurations() -> None:
    assert_equal_layouts("25", "100")


@pytest.mark.slow
def test_all_configurations() -> None:
    assert_equal_layouts("25", "48", "64", "100", "128", "200", "256", "--all")
