"""The blocks of docs/own.md run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs/own.md").read_text("utf-8"), re.DOTALL)


def run(command: str, folder: Path) -> str:
    words = command.replace("hypermask ", "python -m hypermask_fast ", 1).split()
    done = subprocess.run(
        [sys.executable if word == "python" else word for word in words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@pytest.mark.long
def test_its_blocks_run(tmp_path: Path) -> None:
    outputs: dict[str, list[str]] = {}
    for language, text in BLOCKS:
        if language == "python":
            name = text.partition("\n")[0].removeprefix("# ")
            (tmp_path / name).write_text(text, encoding="utf-8")
            continue
        for command in text.splitlines():
            outputs.setdefault(command.partition(" --")[0], []).append(run(command, tmp_path))
    (evaluated,) = outputs["hypermask eval own"]
    means = [float(text) for text in re.findall(r"([\d.]+) %", evaluated)]
    assert len(means) == 4
    assert min(means) > 75
    first, second = outputs["python mine.py"]
    assert first == second
    assert (tmp_path / "runs/mine/accuracy.png").exists()
