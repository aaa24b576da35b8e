"""Processes of the benchmarks: their answers, their ends, and the files they leave."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import gpu
from benchmarks.__main__ import main
from benchmarks.harness.files import write_json
from benchmarks.harness.process import Worker, _reason, variables
from benchmarks.kernels.catalogue import find_kernel_cases
from benchmarks.steps.catalogue import find_cases
from hypermask_fast import cli
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
        pytest.param("suite=all", "give it as suite=SECONDS", id="no-seconds"),
        pytest.param("racecheck", "leave racecheck out of --parts", id="no-sanitizer"),
    ],
)
def test_parts_are_refused_in_a_sentence(
    part: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert main(["gpu", "--out", str(tmp_path), "--parts", part]) == 2
    assert message in capsys.readouterr().err


def test_parts_are_commands_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: "compute-sanitizer")
    for name in gpu.PARTS:
        part = gpu._make(name, tmp_path, 120.0)
        for command in part.commands:
            assert {"pytest", "benchmarks", "hypermask_fast"} & {*command}
            files = [word for word in command if word.startswith("tests/")]
            assert all(Path(__file__).parents[2].joinpath(file).exists() for file in files)
    (command,) = gpu._make("suite", tmp_path, 120.0).commands
    assert command[command.index("--minutes") + 1] == "1.60"
    (command,) = gpu._make("first", tmp_path, 120.0).commands
    first = command[command.index("--case") + 1 :]
    assert len(find_cases("gpu", first[:4])) == 4
    assert all(len(find_kernel_cases([name])) > 1 for name in first[4:])
    (command,) = gpu._make("check", tmp_path, 120.0).commands
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command[3:], "--help"])
    assert stopped.value.code == 0


class Parts:
    """Takes the place of the parts' commands: each takes its seconds of a clock, and ends so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **takes: float) -> None:
        self.now, self.ran = 0.0, dict[str, float]()
        self.takes, self.ends = takes, dict[str, list[int | None]]()
        monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(gpu, "_make", lambda name, *_: name)
        monkeypatch.setattr(gpu, "_sanitizer", lambda: "compute-sanitizer")
        monkeypatch.setattr(gpu, "_run", self.run)

    def run(self, name: str, seconds: float, output: object) -> list[int | None]:
        self.ran[name] = seconds
        took = self.takes.get(name, seconds)
        self.now += min(took, seconds)
        return self.ends.get(name, [0 if took <= seconds else None])


def test_all_parts_fit_in_one_call_and_the_first_in_ten_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(monkeypatch)
    assert gpu.run_parts(None, tmp_path)
    assert [*parts.ran] == ["check", "first", "tests", "kernels", "tune", "suite", "memcheck"]
    assert parts.ran["check"] + parts.ran["first"] <= 600
    assert parts.now <= 28 * 60


def test_calls_of_ten_minutes_go_through_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, seen = Parts(monkeypatch, check=40, tests=100), []
    for is_done in (False, False, True):
        parts.ran, begun = {}, parts.now
        assert gpu.run_parts(None, tmp_path, minutes=9.5, resume=True) is is_done
        assert parts.now - begun <= 9.5 * 60
        seen += parts.ran
    assert seen == ["check", "first", "tests", "kernels", "tune", "suite", "memcheck"]


def test_a_resumed_call_repeats_what_was_killed_and_not_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(monkeypatch, kernels=1000)
    parts.ends["tests"] = [0, 1]
    assert not gpu.run_parts(["check", "tests", "kernels"], tmp_path)
    parts.ran, parts.takes = {}, {}
    assert gpu.run_parts(["check", "tests", "kernels=200"], tmp_path, resume=True)
    assert parts.ran == {"kernels": 200}
    assert json.loads((tmp_path / "parts.json").read_text())["tests"] == [0, 1]


def test_without_a_sanitizer_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = Parts(monkeypatch)
    monkeypatch.setattr(gpu, "_sanitizer", lambda: None)
    assert gpu.run_parts(None, tmp_path)
    assert "memcheck" not in parts.ran
    assert "memcheck is left out" in capsys.readouterr().err
