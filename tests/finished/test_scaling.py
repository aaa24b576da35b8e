"""The scaling efficiency of a run of several processes, from times that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hypermask_fast.errors import ConfigError
from hypermask_fast.finished.scaling import Reference
from tests.support.run_cases import short


def folder(path: Path, ms: list[list[float]], processes: int | None = None) -> Path:
    """What a run leaves of its settings, its times and its environment."""
    path.mkdir()
    (path / "config.toml").write_text(short().to_toml())
    (path / "timing.json").write_text(json.dumps({"ms_a_step": ms}))
    environment: dict[str, Any] = {} if processes is None else {"processes": processes}
    (path / "manifest.json").write_text(json.dumps({"environment": environment}))
    return path


def test_the_efficiency_is_the_time_of_one_over_n_times_that_of_n(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", [[9.0, 12.0], [40.0]])
    four = folder(tmp_path / "four", [[4.0], [5.0, 8.0]], 4)
    line = Reference(one, short(log_every=7), 4).line(four)
    # Medians 12 and 5: 12 / (4 * 5).
    assert line == f"scaling efficiency: 60 % (4 processes: 200.0 steps/s; one, {one}: 83.3)"
    untimed = folder(tmp_path / "untimed", [], 4)
    assert "not measured" in Reference(one, short(), 4).line(untimed)


def test_what_is_no_measure_is_refused(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", [[9.0]]), folder(tmp_path / "two", [[9.0]], 2)
    with pytest.raises(ConfigError, match=r"one has other settings \(steps from 6 to 7\)"):
        Reference(one, short(steps=7), 2)
    with pytest.raises(ConfigError, match=r"one has other settings \(compile from 'auto' to False"):
        Reference(one, short(compile=False), 2)
    with pytest.raises(ConfigError, match="two is a run of 2 processes, expected one of one"):
        Reference(two, short(), 2)
    with pytest.raises(ConfigError, match="untimed has no time of a step"):
        Reference(folder(tmp_path / "untimed", [[], []]), short(), 2)
    (two / "manifest.json").write_text("[]")
    with pytest.raises(ConfigError, match="cannot be read"):
        Reference(two, short(), 2)
    with pytest.raises(ConfigError, match="none"):
        Reference(tmp_path / "none", short(), 2)
