"""Processes of the benchmarks: their answers, their ends, and the files they leave."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.__main__ import main
from benchmarks.harness.files import write_json
from benchmarks.harness.process import Worker, _reason, variables
from hypermask_fast.errors import ConfigError


def test_numbers_that_json_has_not_become_null(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    write_json(file, [{"a": float("nan"), "b": [float("inf"), 1.0]}])
    assert json.loads(file.read_text()) == [{"a": None, "b": [None, 1.0]}]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def _worker(folder: Path, code: str) -> Worker:
    (folder / "answering.py").write_text(code)
    return Worker("answering", {}, {"PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}"})


def test_a_process_that_does_not_answer_is_killed(tmp_path: Path) -> None:
    worker = _worker(tmp_path, "import time; time.sleep(60)")
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="no answer within 1 s"):
        worker.ask(1.0)
    worker.close()
    assert time.monotonic() - begun < 20


def test_what_is_printed_beside_answers_is_no_part_of_them(tmp_path: Path) -> None:
    code = """
import os
from benchmarks.harness.process import serve

def begin():
    print("a compiler's remark")
    os.system("echo another")
    return lambda request: {"twice": 2 * request["number"]}

serve(begin)
"""
    worker = _worker(tmp_path, code)
    assert worker.ask(number=4) == {"twice": 8}
    assert worker.ask(number=5) == {"twice": 10}
    worker.close()


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        pytest.param(
            "Traceback\n  File\ntorch.AcceleratorError: CUDA error: an illegal memory access\n"
            "CUDA kernel errors might be reported later\nCompile with `TORCH_USE_CUDA_DSA`",
            "torch.AcceleratorError: CUDA error: an illegal memory access",
            id="cuda",
        ),
        pytest.param("Killed", "Killed", id="no-exception"),
        pytest.param("", "it said nothing", id="nothing"),
    ],
)
def test_the_reason_is_the_line_of_the_exception(log: str, reason: str) -> None:
    assert _reason(log) == reason


def test_no_variable_of_this_environment_changes_what_a_gpu_measures() -> None:
    chosen = variables("cuda")
    assert chosen["TRITON_INTERPRET"] == "0"
    assert chosen["HYPERMASK_FAST_BACKEND"] == "auto"


@pytest.mark.long
def test_parts_leave_logs_and_end_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {
        "tests": ["print('fine')"],
        "kernels": ["print('one')", "import time; print('two', flush=True); time.sleep(60)"],
    }
    monkeypatch.setattr(
        gpu,
        "_make",
        lambda name, *_: gpu._Part([[sys.executable, "-c", code] for code in commands[name]]),
    )
    begun = time.monotonic()
    arguments = ["gpu", "--out", str(tmp_path / "out"), "--parts", "tests=30", "kernels=4"]
    assert main(arguments) == 1
    assert time.monotonic() - begun < 50
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tests.log", "kernels.log"} <= names
    assert not any(name.endswith((".0", ".1")) for name in names)
    text = (tmp_path / "out" / "kernels.log").read_text()
    assert "one\n\n[ended with 0]" in text
    assert "two\n\n[was killed]" in text
    assert "kernels: [0, None] in" in capsys.readouterr().err
    assert main([*arguments[:3], "--parts", "tests=30"]) == 0


@pytest.mark.parametrize(
    ("part", "message"),
    [
        pytest.param("suit=3", "did you mean", id="unknown"),
        pytest.param("suite", "give it as suite=SECONDS", id="no-seconds"),
    ],
)
def test_parts_are_refused_in_a_sentence(
    part: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gpu", "--out", str(tmp_path), "--parts", part]) == 2
    assert message in capsys.readouterr().err


def test_parts_are_commands_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: "compute-sanitizer")
    for name in gpu.PARTS:
        part = gpu._make(name, tmp_path, 120.0)
        for command in part.commands:
            assert "pytest" in command or "benchmarks" in command
            files = [word for word in command if word.startswith("tests/")]
            assert all(Path(__file__).parents[2].joinpath(file).exists() for file in files)
    (command,) = gpu._make("suite", tmp_path, 120.0).commands
    assert command[-2:] == ["--minutes", "1.60"]
