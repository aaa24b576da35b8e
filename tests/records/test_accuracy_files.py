"""Accuracy files, the heat-map and the terminal's table."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from hypermask_fast.errors import DataError
from hypermask_fast.records.accuracy_files import (
    format_matrix,
    read_accuracy,
    write_accuracy,
    write_heatmap,
)

_NAN = float("nan")
_R = np.array([[10.0, 20.5, 30.0], [90.123, 26.0, _NAN], [94.0, 80.0, 40.0], [_NAN, _NAN, _NAN]])
_NAMES = ['digits "0,1"', "digits 2,3", "größe $x_$"]


def _parts(path: Path, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.parse(path).iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def test_npz_holds_the_matrix_and_loads_without_pickle(tmp_path: Path) -> None:
    npz_path, _ = write_accuracy(tmp_path, _R, _NAMES)
    with np.load(npz_path, allow_pickle=False) as data:
        np.testing.assert_array_equal(data["accuracy"], _R)
        assert data["task_names"].tolist() == _NAMES
    matrix, names = read_accuracy(npz_path)
    np.testing.assert_array_equal(matrix, _R)
    assert names == _NAMES


def test_csv_has_a_row_for_each_measured_row(tmp_path: Path) -> None:
    _, csv_path = write_accuracy(tmp_path, _R, _NAMES)
    with open(csv_path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["after_task", *_NAMES],
        ["before training", "10.00", "20.50", "30.00"],
        [_NAMES[0], "90.12", "26.00", ""],
        [_NAMES[1], "94.00", "80.00", "40.00"],
    ]


def test_files_are_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_accuracy(tmp_path, _R, _NAMES)
    write_accuracy(tmp_path, _R + 1, _NAMES)
    write_heatmap(tmp_path / "accuracy.svg", _R, _NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "accuracy.csv",
        "accuracy.npz",
        "accuracy.svg",
    ]
    np.testing.assert_array_equal(read_accuracy(tmp_path / "accuracy.npz")[0], _R + 1)


@pytest.mark.parametrize(
    "content", [pytest.param(None, id="missing"), pytest.param(b"x", id="damaged")]
)
def test_unreadable_matrix_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "accuracy.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"accuracy\.npz"):
        read_accuracy(path)


def test_foreign_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", accuracy=np.zeros((2, 2)), task_names=np.array(["a", "b"]))
    np.savez(tmp_path / "b.npz", weights=np.zeros(3))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(DataError, match=name):
            read_accuracy(tmp_path / name)


def test_table_shows_values_and_metrics() -> None:
    lines = format_matrix(_R, _NAMES).splitlines()
    assert [line.split()[-3:] for line in lines[:4]] == [
        ["1", "2", "3"],
        ["10.00", "20.50", "30.00"],
        ["90.12", "26.00", "-"],
        ["94.00", "80.00", "40.00"],
    ]
    assert lines[2].startswith('1 digits "0,1"')
    # Two tasks are learned: ACC (94 + 80) / 2, BWT 94 - 90.123, FWT 26 - 20.5.
    assert lines[4] == (
        "ACC 87.00, AIA 88.56, learning 85.06, BWT 3.88, FWT 5.50, forgetting 0.00 (percent)"
    )
    assert len(lines) == 5


def test_table_of_many_tasks_fits_a_terminal() -> None:
    matrix = np.full((101, 100), 50.0)
    matrix[50:] = _NAN
    matrix[49, 0] = 42.0
    lines = format_matrix(
        matrix, [f"permutation {i} of the pixels" for i in range(100)]
    ).splitlines()
    assert len(lines) == 1 + 49 + 1
    assert lines[1].split()[-3:] == ["50.00", "50.00", "42.00"]
    assert max(map(len, lines)) <= 100


def test_table_before_training_has_no_metrics() -> None:
    matrix = np.full((3, 2), _NAN)
    matrix[0] = 10.0
    assert len(format_matrix(matrix, ["a", "b"]).splitlines()) == 2


def test_heatmap_is_blank_where_nothing_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.svg"
    write_heatmap(path, _R, _NAMES)
    shown = [title.text for title in _parts(path, "title")]
    assert shown == [
        f"{column}, {row}: {value:.2f}"
        for row, values in zip(["before training", *_NAMES], _R, strict=True)
        for column, value in zip(_NAMES, values, strict=True)
        if not np.isnan(value)
    ]


def test_heatmap_of_any_number_of_tasks_is_drawn(tmp_path: Path) -> None:
    for tasks in (1, 45):
        path = tmp_path / f"{tasks}.svg"
        write_heatmap(path, np.full((tasks + 1, tasks), 99.0), [f"task {i}" for i in range(tasks)])
        (picture,) = _parts(path, "svg")
        assert max(float(picture.attrib[side]) for side in ("width", "height")) < 1200


def test_heatmap_needs_no_library(tmp_path: Path) -> None:
    code = (
        "import sys, numpy, hypermask_fast.records.accuracy_files as report\n"
        "report.write_heatmap(sys.argv[1], numpy.full((3, 2), 5.0), ['a', 'b'])\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.svg")]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=120)


@pytest.mark.parametrize("names", [["a", "b"], []], ids=["two-names", "no-names"])
def test_names_that_do_not_fit_are_refused(tmp_path: Path, names: list[str]) -> None:
    for call in (
        lambda: write_accuracy(tmp_path, _R, names),
        lambda: write_heatmap(tmp_path / "a.svg", _R, names),
        lambda: format_matrix(_R, names),
    ):
        with pytest.raises(ValueError, match="task names"):
            call()
    assert not list(tmp_path.iterdir())
