"""Whether runs are the same bit by bit, and where they part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError
from hypermask_fast.files import checkpoint
from hypermask_fast.finished.identity import PARTS, compare_runs
from hypermask_fast.records.accuracy_files import read_accuracy, write_accuracy
from hypermask_fast.runs import run
from tests.support.run_cases import short, stopped


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("identity") / "a"
    run.train(short(), path, show_progress=False)
    return path


def test_a_run_that_was_stopped_and_resumed_is_the_same(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "b"
    stopped(short(), path)
    found = compare_runs(whole, path)
    assert not found.is_same
    assert "of the steps 12 and 9" in found.differing["weights"][0]
    run.resume(path, show_progress=False)
    assert cli.main(["compare-runs", str(whole), str(path)]) == 0
    assert f"bitwise identical: {', '.join(PARTS)}" in capsys.readouterr().out
    times = [(each / "timing.json").read_text() for each in (whole, path)]
    assert times[0] != times[1]


def test_runs_part_where_they_do(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "b"
    run.train(short(lr=2e-3), path, show_progress=False)
    assert cli.main(["compare-runs", str(whole), str(path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["identical"]
    assert "lr is 0.001" in found["differing"]["settings"][0]
    # The first row of the log is that of step 2, the losses before the second update.
    assert (found["first_row"]["task"], found["first_row"]["step"]) == (0, 2)
    assert {"loss", "task_loss", "lr"} <= found["first_row"]["values"].keys()
    tensors = [checkpoint.load_latest(each / "checkpoints").tensors for each in (whole, path)]
    for each in found["tensors"]:
        a, b = (of_one[each["name"]] for of_one in tensors)
        assert each["entries"] == int((a != b).sum())
        assert each["largest"] == float((a.double() - b.double()).abs().max())
    sizes = [each["largest"] for each in found["tensors"]]
    assert sizes == sorted(sizes, reverse=True)


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_a_bit_of_a_tensor_is_seen(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path / "b")
    newest = checkpoint.load_latest(path / "checkpoints")
    name = "learner/hypernetwork.head.bias"
    newest.tensors[name][3] = torch.nextafter(newest.tensors[name][3], torch.tensor(9.0))
    checkpoint.save(path / "checkpoints", newest.step, newest.tensors, newest.state)
    found = compare_runs(whole, path)
    assert [*found.differing] == ["weights"]
    assert [(each.name, each.entries) for each in found.tensors] == [(name, 1)]
    assert 0 < found.tensors[0].largest < 1e-6


def test_random_state_and_accuracy_are_seen(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path / "b")
    newest = checkpoint.load_latest(path / "checkpoints")
    newest.tensors["rng/cpu"][0] += 1
    checkpoint.save(path / "checkpoints", newest.step, newest.tensors, newest.state)
    matrix, names = read_accuracy(path / "accuracy.npz")
    matrix[2, 0] += 1e-9
    write_accuracy(path, matrix, names)
    found = compare_runs(whole, path)
    assert [*found.differing] == ["RNG", "accuracy"]
    assert "on digits 0/1 after digits 2/3" in found.differing["accuracy"][0]


def test_times_and_free_settings_may_be_others(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path / "b")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "time": 1e3, "steps_per_second": 2.0}) + "\n" for row in rows]
    (path / "metrics.jsonl").write_text("".join(lines))
    text = (path / "config.toml").read_text()
    changed = text.replace("checkpoint_every = 0.0", "checkpoint_every = 9.0")
    (path / "config.toml").write_text(changed)
    found = compare_runs(whole, path)
    assert found.is_same
    assert any("checkpoint_every" in note for note in found.notes)
    del lines[2]
    (path / "metrics.jsonl").write_text("".join(lines))
    assert [*compare_runs(whole, path).differing] == ["metrics"]


def test_what_is_no_run_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder"):
        compare_runs(whole, tmp_path)
    assert cli.main(["compare-runs", str(whole), str(tmp_path)]) == 2


def test_the_largest_of_nothing_is_none(whole: Path, tmp_path: Path) -> None:
    path = copy(whole, tmp_path / "b")
    newest = checkpoint.load_latest(path / "checkpoints")
    newest.tensors["task/more"] = torch.zeros(2)
    checkpoint.save(path / "checkpoints", newest.step, newest.tensors, newest.state)
    found = compare_runs(whole, path)
    assert np.isnan(found.tensors[0].largest)
    assert "in the second run alone" in found.table()
    assert found.to_json()["tensors"][0]["largest"] is None
