"""The command export: a file, and what is printed about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from hypermask_fast import cli
from hypermask_fast.finished import exporting
from hypermask_fast.inference.sparse import keep_2_of_4
from hypermask_fast.runs import run
from tests.support.run_cases import contents, short


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exporting") / "run"
    run.train(short(steps=40), path, show_progress=False)
    return path


def export(path: Path, *words: str) -> int:
    return cli.main(["export", str(path), *words])


def test_a_task_by_name_and_by_id(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = run.load(path).learner.tasks[1].name
    out = tmp_path / "new" / "a.safetensors"
    assert export(path, "--task", name, "--format", "safetensors", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert f"task      {name}\nfile      {out} (weights only)" in printed
    assert f"{out.stat().st_size:,} bytes" in printed
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["task"] == name
        assert json.loads(file.metadata()["classes"]) == [2, 3]
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    learner = run.load(path).learner
    for key, value in learner.task_weights(1).items():
        assert torch.equal(found[key], value), key
    again = tmp_path / "b.safetensors"
    assert export(path, "--task", "1", "--format", "safetensors", "--out", str(again)) == 0
    assert again.read_bytes() == out.read_bytes()


def test_a_network_that_refuses_one_input_is_timed_with_two() -> None:
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval()
    x = torch.randn(5, 3)
    assert exporting._timed_inputs(layers, x).equal(x[:2])
    assert exporting._timed_inputs(layers[0], x).equal(x[:1])


@pytest.mark.long
def test_2_of_4_says_what_it_costs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(path, "--task", "0", "--sparse", "2:4", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    file = path / "exported" / "task-0-2of4.pt2"
    assert (found["file"], found["bytes"]) == (str(file), file.stat().st_size)
    assert found["difference"] <= 1e-6
    assert 0.1 < found["pruned"] <= 0.5
    assert found["plain_ms"] < found["learner_ms"]
    trainer = run.load(path)
    assert found["accuracy"] == trainer.evaluate(0)
    net = torch.export.load(file).module()
    for key, weight in net.state_dict().items():
        assert weight.dim() < 2 or not weight[~keep_2_of_4(weight)].any(), key
    x, y = next(trainer.tasks[0].evaluation_batches("test", 10_000))
    right = (net(x)[:, :2].argmax(1) == y).float().mean()
    assert found["sparse_accuracy"] == pytest.approx(100 * float(right))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "2"], "task='2' was not learned; choose one of 0 ("),
        (["--task", "digits 0/2"], "did you mean 'digits 0/1'"),
        (["--task", "0", "--format", "onx"], "did you mean 'onnx'"),
        (["--task", "0", "--sparse", "1:4"], "sparse='1:4' is unknown"),
        (["--task", "0", "--format", "safetensors", "--out", "/proc/no/a"], "choose another --out"),
    ],
)
def test_wrong_arguments(
    words: list[str], said: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(path)
    assert export(path, *words) == 2
    assert said in capsys.readouterr().err
    assert contents(path) == before


def test_a_file_is_replaced_only_when_forced(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "0", "--format", "safetensors", "--out", str(tmp_path / "mine")]
    (tmp_path / "mine").write_text("mine")
    assert export(path, *words) == 2
    assert "exists; replace it with --force" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "mine"
    assert export(path, *words, "--force") == 0
    assert (tmp_path / "mine").read_bytes() != b"mine"
