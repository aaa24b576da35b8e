"""A run of each method whose checkpoint's state was altered is refused, and not touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hypermask_fast.errors import CheckpointError
from hypermask_fast.runs import run
from hypermask_fast.settings.config import RunConfig
from tests.support.run_cases import assert_same_run, contents, edit_state, stopped

_SMALL: dict[str, Any] = {
    **{"tasks": 2, "steps": 4, "mlp_hidden": (6,), "batch_size": 16, "validation": 40},
    **{"checkpoint_every": 0.0, "device": "cpu"},
}
_EMBEDDED: dict[str, Any] = {"embedding_dim": 3, "hidden": (4,), "capacity": 2}
METHODS: dict[str, dict[str, Any]] = {
    "hnet": {**_EMBEDDED, "chunk_embedding_dim": 2, "chunk_size": 100},
    "hyperinterval": _EMBEDDED,
    "supsup": {},
    "exssnet": {"kkt": "knn_always"},
}
EDITS: dict[str, Any] = {"learned": [1.5], "current": "x", "phase": 3, "capacity": -1}


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_an_altered_state_is_refused_and_the_right_one_goes_on(method: str, tmp_path: Path) -> None:
    config = RunConfig.from_preset(f"{method}-split-digits", **{**_SMALL, **METHODS[method]})
    run.train(config, tmp_path / "whole", show_progress=False)
    path = tmp_path / "half"
    stopped(config, path, after=6)
    for name, wrong in EDITS.items():
        kept: dict[str, Any] = {}

        def swap(stored: dict[str, Any], name: str = name, kept: dict[str, Any] = kept) -> None:
            state = stored["state"]["trainer"]["task"]
            kept["now"], state[name] = state[name], kept["now"]

        kept["now"] = wrong
        edit_state(path, swap)
        before = contents(path)
        with pytest.raises(CheckpointError, match=f"the state has {name}=|does not fit") as caught:
            run.resume(path, show_progress=False)
        assert "\n" not in str(caught.value)
        assert contents(path) == before
        edit_state(path, swap)
    run.resume(path, show_progress=False)
    assert_same_run(tmp_path / "whole", path)
