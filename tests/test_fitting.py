"""Tables and sentences in few columns."""

from __future__ import annotations

import pytest

from hypermask_fast.commands.fitting import fitted

TABLE = """\
split-digits, 2 tasks, means over seeds
method              ACC %   ms a step    runs
hypermask  74.65 +/- 8.95       0.123  2 of 2
supsup     97.89 +/- 8.95           -  2 of 2

hypermask: preset split-digits, tasks=2"""


def test_a_table_becomes_a_paragraph_for_each_row() -> None:
    assert fitted(TABLE, 30).splitlines() == [
        "split-digits, 2 tasks, means",
        "  over seeds",
        "hypermask",
        "  ACC %         74.65 +/- 8.95",
        "  ms a step              0.123",
        "  runs                  2 of 2",
        "supsup",
        "  ACC %         97.89 +/- 8.95",
        "  ms a step                  -",
        "  runs                  2 of 2",
        "",
        "hypermask: preset",
        "  split-digits, tasks=2",
    ]


@pytest.mark.parametrize("width", [None, 45, 200])
def test_what_has_room_stays(width: int | None) -> None:
    assert fitted(TABLE, width) == TABLE


def test_names_and_values_stay_beside_each_other_where_they_can() -> None:
    text = (
        "checkpoints on disk: two, and one being written     20.7 MiB\n"
        "needed                                             167.5 MiB\n"
        "file                                               /a/path/that/is/longer/than/that"
    )
    assert fitted(text, 30).splitlines() == [
        "checkpoints on disk:",
        "  two, and one being",
        "  written             20.7 MiB",
        "needed               167.5 MiB",
        "file",
        "  /a/path/that/is/longer/than/that",
    ]
