"""Metrics by the names and formulas of other libraries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hypermask_fast import cli
from hypermask_fast.errors import ConfigError, DataError
from hypermask_fast.metrics.like import LIBRARIES, formulas, like
from hypermask_fast.records.accuracy_files import write_accuracy
from hypermask_fast.records.metrics_of import metrics_of

NAN = float("nan")
R = np.array([[10, 20, 30], [90, 26, NAN], [94, 80, 40], [70, 85, 99]], dtype=np.float64)
COUNTS = [10, 30, 60]
WHERE = "eval_phase/test_stream"


def test_avalanche() -> None:
    found = like("avalanche", R, COUNTS)
    assert found[f"Top1_Acc_Stream/{WHERE}"] == pytest.approx((7 + 25.5 + 59.4) / 100)
    assert found[f"Top1_Acc_Exp/{WHERE}/Task001/Exp001"] == pytest.approx(0.85)
    assert found[f"ExperienceForgetting/{WHERE}/Task000/Exp000"] == pytest.approx(0.20)
    assert found[f"ExperienceBWT/{WHERE}/Task001/Exp001"] == pytest.approx(0.05)
    assert found[f"StreamForgetting/{WHERE}"] == pytest.approx((0.20 - 0.05) / 2)
    assert found[f"StreamBWT/{WHERE}"] == pytest.approx(-(0.20 - 0.05) / 2)
    assert found[f"StreamForwardTransfer/{WHERE}"] == pytest.approx((0.06 + 0.10) / 2)


def test_mammoth() -> None:
    found = like("mammoth", R, COUNTS)
    assert found["accmean_task-il"] == pytest.approx((70 + 85 + 99) / 3)
    assert found["accuracy_2_task3"] == 85.0
    assert found["backward_transfer"] == pytest.approx((-20 + 5) / 2)
    assert found["forward_transfer"] == pytest.approx((6 + 10) / 2)
    # The best of the first task is after the second one, of the second at the end.
    assert found["forgetting"] == pytest.approx(24 / 2)


def test_pycil() -> None:
    found = like("pycil", R, COUNTS)
    curve = [90.0, (940 + 2400) / 40, (700 + 2550 + 5940) / 100]
    assert found["CNN top1 curve"] == pytest.approx(curve)
    assert found["Average Accuracy (CNN)"] == pytest.approx(np.mean(curve))
    assert found["Forgetting (CNN)"] == pytest.approx(12.0)


def test_gem_divides_by_all_tasks() -> None:
    found = like("gem", R, COUNTS)
    assert found["Final Accuracy"] == pytest.approx((70 + 85 + 99) / 300)
    assert found["Backward"] == pytest.approx((-20 + 5 + 0) / 300)
    assert found["Forward"] == pytest.approx((0 + 6 + 10) / 300)


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_task_or_none_is_no_error(library: str) -> None:
    for matrix in (R[:2, :1], np.full((3, 2), NAN)):
        assert like(library, matrix)
    assert "R[" in formulas(library)


def test_an_unknown_library_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mammoth'"):
        like("mamoth", R)


def test_the_command_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz, _ = write_accuracy(tmp_path, R, ["a", "b", "c"])
    assert cli.main(["metrics", str(npz), "--like", "mammoth"]) == 0
    printed = capsys.readouterr().out
    assert "tasks count alike" in printed
    assert " 84.67" in printed
    assert cli.main(["metrics", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["like"] is None
    assert found["metrics"]["acc_final"] == pytest.approx(254 / 3)
    assert "1/t" in found["definitions"]["acc_final"]
    (tmp_path / "summary.json").write_text(json.dumps({"test_examples": COUNTS}))
    assert metrics_of(tmp_path).values["acc_final_weighted"] == pytest.approx(91.9)
    with pytest.raises(DataError, match="accuracy matrix"):
        metrics_of(tmp_path / "none.npz")
    with pytest.raises(ConfigError, match="none is not a run folder: it does not exist"):
        metrics_of(tmp_path / "none")
