"""The command line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hypermask_fast import cli
from hypermask_fast.backends import proof
from hypermask_fast.kernels.selfcheck import run
from hypermask_fast.settings.config import RunConfig
from tests.support.planted import plant

QUICK = ["--tasks", "2", "--steps", "5", "--mlp-hidden", "8", "--device", "cpu"]


def test_train_writes_a_whole_run_and_eval_repeats_its_last_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli.main(["train", *QUICK, "--seed", "3", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert f"results: {out}" in printed.out
    assert "ACC" in printed.out
    names = {p.name for p in out.iterdir()}
    assert {
        "accuracy.csv",
        "accuracy.npz",
        "accuracy.svg",
        "checkpoints",
        "config.toml",
        "metrics.jsonl",
    } <= names
    settings = RunConfig.from_toml(out / "config.toml")
    assert (settings.preset, settings.run.seed, settings.scenario.tasks) == ("split-digits", 3, 2)
    assert cli.main(["eval", str(out)]) == 0
    last = np.load(out / "accuracy.npz")["accuracy"][-1]
    printed = capsys.readouterr()
    for value in (*last, last.mean()):
        assert f"{value:6.2f} %" in printed.out


def test_seeds_run_in_folders_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--seeds", "2", "--jobs", "1", "--seed", "4", "--out", str(tmp_path)]
    assert cli.main(["train", *QUICK, *words]) == 0
    assert RunConfig.from_toml(tmp_path / "seed-4" / "config.toml").run.seed == 4
    assert RunConfig.from_toml(tmp_path / "seed-5" / "config.toml").run.seed == 5
    values = [
        np.load(tmp_path / f"seed-{s}" / "accuracy.npz")["accuracy"][-1].mean() for s in (4, 5)
    ]
    line = f"acc_final            {np.mean(values):8.2f} +/- {np.std(values, ddof=1):.2f}"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--preset", "split-minst"], "split-mnist", id="preset"),
        pytest.param(["--sparsity", "120"], "sparsity=120.0", id="sparsity"),
        pytest.param(["--seeds", "0"], "seeds=0", id="seeds"),
        pytest.param(["--device", "cuda:77"], "device='cuda:77'", id="device"),
        pytest.param(["--spasity", "3"], "did you mean '--sparsity'", id="name"),
        pytest.param(["--network", "resnet", "--mlp-hidden=3"], "of --network mlp", id="owner"),
        pytest.param(["--lr"], "expected one argument", id="no-value"),
        pytest.param(["3"], "'3' is left over", id="left-over"),
        pytest.param(["--scenario", "split-mnist", "--steps", "1"], "MNIST", id="no-data"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    out = tmp_path / "run"
    data = ["--data-dir", str(tmp_path / "nothing")]
    assert cli.main(["train", "--out", str(out), *data, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("hypermask: ")  # after what took its time
    assert words in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["--quiet"], "arguments are required: COMMAND", id="none"),
        pytest.param(["trian"], "'trian'", id="command"),
        pytest.param(["eval", "x", "--devise", "cpu"], "did you mean '--device'", id="eval"),
        pytest.param(["resume"], "required: run", id="resume"),
    ],
)
def test_wrong_commands_are_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("hypermask: ")
    assert said in error
    assert error.count("\n") == 1


def test_help_is_grouped_by_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--preset", "cifar100-resnet", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "\nnetwork:\n  --network TEXT" in printed
    assert "--resnet-n INT" in printed
    assert "--mlp-hidden" not in printed


def test_a_failed_start_leaves_no_folder_behind(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--scenario", "split-mnist", "--steps", "1", "--data-dir", str(tmp_path / "none")]
    assert cli.main(["train", "--out", str(out), *arguments]) == 2
    assert not out.exists()


def test_eval_and_resume_of_nothing_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("eval", "resume"):
        assert cli.main([command, str(tmp_path / "none")]) == 2
        assert str(tmp_path / "none") in capsys.readouterr().err


def test_doctor_passes_its_self_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("passed") == 3
    assert "FAILED" not in printed


def test_doctor_checks_kernels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(proof, "_FOLDERS", (lambda *, make=True: tmp_path,))
    monkeypatch.setattr(run, "KERNELS", {name: run.KERNELS[name] for name in ("pack", "top_k")})
    assert cli.main(["doctor", "--kernels"]) == 0
    printed = capsys.readouterr().out
    assert "passed pack\n" in printed
    assert "passed top_k\n" in printed
    plant(monkeypatch, "_top_k_pack_kernel", "wrong")
    assert cli.main(["doctor", "--kernels"]) == 1
    assert "FAILED pack: the bits: " in capsys.readouterr().out


def test_doctor_has_no_kernels_to_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert cli.main(["doctor", "--kernels"]) == 2
    assert "--kernels checks Triton kernels on CUDA devices" in capsys.readouterr().err


def test_threads_that_wait_sleep_unless_the_environment_says_how(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert cli.main(["presets"]) == 0
    assert int(os.environ["GOMP_SPINCOUNT"]) < 300_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert cli.main(["presets"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert cli.main(["presets"]) == 0
    assert "GOMP_SPINCOUNT" not in os.environ
