"""Short comparisons, and what two of them have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypermask_fast.settings.comparison import ComparisonConfig
from tests.support.run_cases import SHORT

METHODS = ("hypermask", "supsup")
INFER = ("entropy",)


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
