"""Short comparisons, and what two of them have in common."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hypermask_fast.settings.comparison import ComparisonConfig
from hypermask_fast.studies.comparison import Comparison, compare
from tests.support.run_cases import SHORT, assert_same_run

METHODS = ("hypermask", "supsup")
INFER = ("entropy",)
ALL = [(method, seed) for method in METHODS for seed in (4, 5)]


def short_comparison(*, methods: Any = METHODS, **rest: Any) -> ComparisonConfig:
    """Two seeds of two methods; ``options`` change the runs."""
    options = {**SHORT, "seed": 4, **rest.pop("options", {})}
    given = {"seeds": 2, "infer": INFER, **rest}
    return ComparisonConfig.from_preset("split-digits", methods, options, **given)


def words(out: Path, *more: str, methods: str = "hypermask,supsup") -> list[str]:
    """The command line of :func:`short_comparison`."""
    found = ["compare", "--preset", "split-digits", "--methods", methods, "--out", str(out)]
    for name, value in {**SHORT, "seed": 4, "seeds": 2, "infer": "entropy"}.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        found += [f"--{name.replace('_', '-')}", text]
    return [*found, *more]


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _untimed(item) for name, item in value.items() if name != "ms_a_step"}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


def table_of(path: Path) -> Any:
    """What a comparison found, but for the times."""
    return _untimed(json.loads((path / "compare.json").read_bytes()))


def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of a comparison, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def quiet(path: Path, **changes: Any) -> Comparison:
    """Make :func:`short_comparison` in a folder."""
    return compare(short_comparison(**changes), path, show_progress=False)


def assert_same(whole: Path, path: Path) -> None:
    """Raise unless two folders hold the same comparison, but for times."""
    assert table_of(path) == table_of(whole)
    for method, seed in ALL:
        assert_same_run(whole / method / f"seed-{seed}", path / method / f"seed-{seed}")
