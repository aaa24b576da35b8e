"""What presets are expected to reach: the figures of the page that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.expected import Expected, expected_of
from hypermask_fast.settings.presets import presets

ROOT = Path(__file__).parents[2]
FOUND = {name: expected_of(RunConfig.from_preset(name))[0] for name in presets()}


@pytest.mark.parametrize("name", [name for name, found in FOUND.items() if found])
def test_figures_stand_on_the_page_they_name(name: str) -> None:
    expected = FOUND[name]
    assert expected is not None
    page = (ROOT / expected.source).read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
    seeds, acc = (cell.strip() for cell in row.split("|")[2:4])
    assert expected.seeds == int(seeds)
    assert re.match(r"[\d.]+", acc)[0] == f"{expected.acc:.2f}"  # type: ignore[index]
    assert ("+/-" in acc) == (expected.std is not None)


def test_settings_that_are_not_the_presets_have_no_such_figure() -> None:
    config = RunConfig.from_preset("split-digits", seed=7, device="cpu", lr=1e-2, data_dir="x")
    assert expected_of(config) == (FOUND["split-digits"], ["lr"])
    assert expected_of(RunConfig.from_options(steps=5)) == (None, [])
    assert expected_of(RunConfig.from_preset("tiny-resnet")) == (None, [])


def test_the_tolerance_falls_with_the_seeds_to_what_machines_differ_by() -> None:
    expected = Expected(acc=90.0, std=1.0, seeds=4, source="")
    assert expected.tolerance(4) == pytest.approx(3 * (1 / 4 + 1 / 4) ** 0.5)
    assert expected.tolerance(12) == pytest.approx(3 * (1 / 4 + 1 / 12) ** 0.5)
    assert Expected(acc=90.0, std=0.0, seeds=4, source="").tolerance(4) == 0.2
    assert Expected(acc=90.0, seeds=1, source="").tolerance(4) is None
