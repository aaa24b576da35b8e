"""The line of progress: what it shows in how many columns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hypermask_fast.console.terminal import cells
from hypermask_fast.training.progress_line import Place, duration, fitted_line, plain_line

PLACE = Place(
    task=3,
    tasks=10,
    name="perm 3",
    step=20,
    steps=5000,
    done=10_020,
    total=50_000,
    rate=123.4,
    accuracy=97.314,
    losses={"loss": 0.12345, "task": 0.1},
)
PLACES = {
    "usual": PLACE,
    "begin": replace(PLACE, rate=0.0, accuracy=None, losses={}),
    "no-name": replace(PLACE, name=""),
    "long": replace(PLACE, task=100, tasks=250, name="Fashion-MNIST T-shirt/Trouser no. 17"),
    "wide": replace(PLACE, name="\u6570\u5b57\u306e\u8a8d\u8b58 17" * 5),
    "slow": replace(PLACE, rate=0.003, losses={"loss": 1.23e-7}),
    "fast": replace(PLACE, rate=98_765.4, losses={"loss": 123_456.7}),
    "end": replace(PLACE, done=50_000, accuracy=100.0, losses={"loss": math.nan}),
    "newline": replace(PLACE, name="a\nb\033[2J\t"),
}


def _text(place: Place, width: int, blocks: bool = True) -> str:
    return "".join(fitted_line(place, width, blocks=blocks))


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_it_fits_every_width(place: Place) -> None:
    for blocks in (True, False):
        for width in range(1, 201):
            line = _text(place, width, blocks)
            assert cells(line) <= width
            assert line.isprintable()
            if width >= 39:
                assert line.startswith((f"{place.task}/", f"task {place.task}/"))
                assert f"{place.percent}" in line


def test_forty_columns_have_room_for_all() -> None:
    assert _text(PLACE, 39) == "3/10 perm 3 20% 0.12 acc 97% 123/s 5:24"
    assert _text(PLACE, 44) == "3/10 perm 3 20% loss 0.12 acc 97% 123/s 5:24"
    slow = replace(PLACE, rate=0.5, losses={"loss": 2.3e-5})
    assert _text(slow, 39) == "3/10 p\u20263 20% 2e-5 acc 97% 2.0s/it 22h13"


def test_more_columns_have_more() -> None:
    assert _text(PLACE, 60) == "3/10 perm 3  20 %  loss 0.123  acc 97.3 %  123/s  ETA 5:24"
    begin, bar, end = fitted_line(PLACE, 199)
    assert begin == "task 3/10 perm 3  "
    assert len(bar) == 40
    assert bar.count("\u2588") == 8  # a fifth
    assert end == "  20 %  loss 0.1235  accuracy 97.31 %  123.4 steps/s  ETA 5:24"
    assert _text(PLACE, 79) == f"{begin.rstrip()}{end}"


def test_names_keep_both_ends() -> None:
    line = _text(PLACES["long"], 60)
    assert "Fa" in line
    assert "17 " in line
    assert "\u2026" in line
    assert ".." in _text(PLACES["long"], 60, blocks=False)


def test_a_plain_line_has_all() -> None:
    assert plain_line(PLACE) == (
        "task 3/10 perm 3, step 20/5000, 20 %, 123.4 steps/s, ETA 5:24, loss 0.1235 task 0.1, "
        "accuracy 97.31 %"
    )


def test_durations() -> None:
    times = [7.4, 59.6, 3600, 47.9 * 3600, 50 * 3600]
    assert [duration(t) for t in times] == ["0:07", "1:00", "1:00:00", "47:54:00", "2d 2h"]
