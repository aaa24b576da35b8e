"""What commands say: modes, versions, lists, and help that fits."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError
from hypermask_fast.planning.plan import Plan, plan
from hypermask_fast.runs.devices import device_named
from hypermask_fast.settings.config import RunConfig, presets

QUICK = ["--tasks", "2", "--steps", "5", "--mlp-hidden", "8", "--hidden", "4", "--device", "cpu"]


def test_quiet_prints_the_results_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    # Sparsity below 1 warns.
    words = ["train", *QUICK, "--sparsity", "0.5", "--out", out, "--quiet"]
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("after task")
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith("hypermask: ")
    assert cli.main(["resume", out, "--plain"]) == 0
    assert cli.main(["train", "--quiet", "--plain"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_printed_settings_are_those_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *QUICK, "--print-config", "--out", str(tmp_path / "none")]) == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    assert "steps = 5  # preset split-digits: 400\n" in text
    wanted = RunConfig.from_preset(
        "split-digits", tasks=2, steps=5, mlp_hidden=(8,), hidden=(4,), device="cpu"
    )
    assert RunConfig.from_toml(text) == wanted


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["hypermask_fast", "python", "torch", "triton"]
    assert lines[2] == f"torch {importlib.metadata.version('torch')}"


def test_no_command_is_an_error_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\nhypermask ") == 3
    assert max(map(len, printed.err.splitlines())) <= 53


@pytest.mark.parametrize("words", [["help"], ["help", "train"], ["plan", "-h"]])
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_fits_and_tells_the_statuses(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "Exit status: 0, done;" in " ".join(printed.split())
    wide = [line for line in printed.splitlines() if len(line) > columns and " " in line.strip()]
    assert not wide


def test_presets_are_listed_with_what_they_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == presets()
    row = next(line for line in lines if line.startswith("permuted-mnist-10 "))
    for word in ("hypermask", "10 tasks", "mlp", "5000 steps", "the published settings"):
        assert word in row
    assert cli.main(["presets", "--method", "supsup"]) == 0
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()} == {"supsup"}
    assert cli.main(["presets", "--method", "supsub"]) == 2
    assert "did you mean 'supsup'" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_presets_fit_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setattr("hypermask_fast.commands.presets.width_of", lambda _: columns)
    assert cli.main(["presets", "--method", "hyperinterval"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # The names stay whole.
    assert max(map(len, lines)) <= max(columns, 43)
    assert any(line.split()[0] == "hyperinterval-permuted-mnist-10-short-task" for line in lines)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "did you mean 'cuda'"),
        ("GPU:1", "did you mean 'cuda'"),
        ("cpuu", "did you mean 'cpu'"),
        ("metal", "did you mean 'mps'"),
    ],
)
def test_devices_that_are_called_otherwise(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunConfig.from_preset("split-digits", device=name)


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"finds no cuda device here; give one of auto, cpu"):
        device_named("cuda:9")
    with pytest.raises(ConfigError, match="finds no xpu device here; give one of auto, cpu"):
        device_named("xpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        ConfigError,
        match=r"'cuda:9': there are 2, which are counted from 0; .* cpu, cuda:0, cuda:1",
    ):
        device_named("cuda:9")
    assert device_named("cpu") == torch.device("cpu")


def test_a_run_that_could_not_be_resumed_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "alternatives", lambda _: [])  # many plans
    words = ["--tasks", "2", "--steps", "2", "--hidden", "50", "--device", "cpu"]
    config = RunConfig.from_preset("split-digits", tasks=2, steps=2, hidden=(50,), device="cpu")
    found = plan(config)
    training, resuming = found.needed(), found.needed(resuming=True)
    assert training < resuming
    out = tmp_path / "run"
    memory = ["--memory-gib", repr((training + resuming) / 2 / 2**30)]
    for command in (["train", "--out", str(out)], ["plan"]):
        assert cli.main([*command, *words, *memory]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "could not be resumed" in error
        assert not out.exists()
    enough = error.partition("--memory-gib ")[2].partition(" ")[0]
    assert float(enough) * 2**30 >= resuming
    assert cli.main(["train", *words, "--out", str(out), "--memory-gib", enough]) == 0
    assert cli.main(["resume", str(out), "--memory-gib", enough]) == 0
