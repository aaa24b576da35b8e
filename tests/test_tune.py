"""The tuner: which configuration it chooses, what it writes, and that launchers find it again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.ahead import run_ahead
from benchmarks.launches import Launch
from benchmarks.timing import Run, Timer, count_sets, median_ms
from benchmarks.tune import find_launches, merged, tune_launch, tune_launches
from hypermask_fast.errors import ConfigError
from hypermask_fast.kernels import _tuning

_CONFIGS = ({"BLOCK": 1}, {"BLOCK": 2}, {"BLOCK": 3})
_MS = {1: 3.0, 2: 1.0, 3: 2.0}
_DEVICE = torch.device("cpu")


def _launch(kernel: str = "k", rows: int = 8, alternative: bool = False) -> Launch:
    def make() -> Run:
        return lambda: _tuning.choose(kernel, _CONFIGS, _DEVICE, rows=rows)["BLOCK"]

    return Launch(make, kernel, _CONFIGS, (lambda: lambda: 9) if alternative else None)


def _time(runs: Sequence[Run]) -> float:
    """Milliseconds by the configuration that the launch runs with, or 9 of an alternative."""
    return _MS.get(runs[0](), 9.0)  # type: ignore[call-overload]


def _sets(make: Callable[[], Run]) -> Sequence[Run]:
    return [make()]


def _tune(launch: Launch, timer: Callable[[Sequence[Run]], float] = _time) -> dict | None:
    alternatives = _sets(launch.alternative) if launch.alternative else ()
    return tune_launch("k/one", launch, _sets(launch.make), alternatives, timer, lambda _: None)


def test_fastest_configuration_is_written_with_its_sizes() -> None:
    entry = _tune(_launch(alternative=True))
    assert entry == {
        "sizes": {"rows": 8},
        "config": {"BLOCK": 2},
        "ms": 1.0,
        "alternative_ms": 9.0,
    }
    assert "alternative_ms" not in (_tune(_launch()) or {})


def test_configurations_that_fail_are_logged_and_left_out() -> None:
    lines: list[str] = []

    def timer(runs: Sequence[Run]) -> float:
        if runs[0]() == 2:
            raise RuntimeError("out of resources")
        return _time(runs)

    launch = _launch()
    entry = tune_launch("k/one", launch, _sets(launch.make), (), timer, lines.append)
    assert entry is not None
    assert entry["config"] == {"BLOCK": 3}
    assert any("out of resources" in line and "'BLOCK': 2" in line for line in lines)


def test_nothing_is_written_where_nothing_runs() -> None:
    def fails(runs: Sequence[Run]) -> float:
        raise RuntimeError("no")

    def only_kernels(runs: Sequence[Run]) -> float:
        return fails(runs) if runs[0]() == 9 else 1.0

    assert _tune(_launch(), fails) is None
    assert _tune(_launch(alternative=True), only_kernels) is None


def test_a_device_that_fails_ends_the_tuning_with_the_launch_named() -> None:
    def faults(runs: Sequence[Run]) -> float:
        raise ConfigError("the GPU failed")

    with pytest.raises(ConfigError, match=r"k/one with \{'BLOCK': 1\}: the GPU failed"):
        _tune(_launch(), faults)


def test_entries_are_merged_and_found_by_launchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "table.json"
    old = {"sizes": {"rows": 8}, "config": {"BLOCK": 3}, "ms": 5.0}
    kept = {"sizes": {"rows": 512}, "config": {"BLOCK": 1}, "ms": 5.0}
    file.write_text(json.dumps({"this": {"k": [old, kept]}, "other": {"k": [old]}}))
    launches = {"a": _launch(), "b": _launch(), "c": _launch("l", 4)}
    assert tune_launches(launches, "this", file, _time, _sets, log=lambda _: None) == 2
    table = json.loads(file.read_text())
    new = {"sizes": {"rows": 8}, "config": {"BLOCK": 2}, "ms": 1.0}
    assert table["this"]["k"] == [new, kept]
    assert table["this"]["l"] == [{**new, "sizes": {"rows": 4}}]
    assert table["other"]["k"] == [old]
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]

    monkeypatch.setattr(_tuning, "_table", lambda: table)
    monkeypatch.setattr(_tuning, "_device_name", lambda index: "this")
    nearest = _tuning._nearest.__wrapped__
    monkeypatch.setattr(_tuning, "_nearest", nearest)
    device = torch.device("cuda", 0)
    assert _tuning.choose("k", _CONFIGS, device, rows=16) == {"BLOCK": 2}
    assert _tuning.choose("k", _CONFIGS, device, rows=300) == {"BLOCK": 1}


def test_entries_of_other_bits_or_layouts_are_not_near(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "this": {
            "k": [
                {"sizes": {"rows": 8, "bits": 32}, "config": {"BLOCK": 1}, "ms": 1.0},
                {"sizes": {"rows": 999, "bits": 16}, "config": {"BLOCK": 2}, "ms": 1.0},
            ]
        }
    }
    monkeypatch.setattr(_tuning, "_table", lambda: table)
    find = _tuning._nearest.__wrapped__
    assert find("this", "k", (("rows", 8), ("bits", 16)))["config"] == {"BLOCK": 2}
    assert find("this", "k", (("rows", 8), ("bits", 64))) is None


def test_tuning_stops_when_its_time_is_over(tmp_path: Path) -> None:
    lines: list[str] = []
    file = tmp_path / "table.json"
    arguments = ("this", file, _time, _sets)
    assert tune_launches({"a": _launch()}, *arguments, end=0.0, log=lines.append) == 0
    assert lines == ["out of time: 1 launches were not timed"]
    assert not file.exists()


def test_merged_replaces_the_same_sizes_only() -> None:
    one, other = ({"sizes": {"rows": n}, "ms": 1.0} for n in (4, 2))
    again = {**one, "ms": 0.5}
    table = merged(merged(merged({}, "d", "k", one), "d", "k", other), "d", "k", again)
    assert table == {"d": {"k": [other, again]}}


def test_every_kernel_that_chooses_is_tuned_and_compared_where_a_route_needs_it() -> None:
    launches = find_launches()
    compared = ("masked_linear", "masked_conv2d")
    for name, launch in launches.items():
        assert any(launch.configs), name
        assert bool(launch.alternative) == launch.kernel.startswith(compared), name
    kernels = {launch.kernel for launch in launches.values()}
    assert kernels >= {
        *(f"{layer}{kind}" for layer in compared for kind in ("", "_input", "_weight")),
        *("select", "step_rows", "mask_weights_forward", "mask_weights_backward"),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--only", "masked_liner"], "did you mean", id="unknown-stem"),
        pytest.param([], "no CUDA device", id="no-gpu"),
    ],
)
def test_tune_refuses_in_a_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune", "--json", str(tmp_path / "t.json"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_sets_exceed_caches_and_large_ones_need_no_rotation() -> None:
    megabyte = 2**20
    assert count_sets(megabyte, "cpu") == 1
    assert count_sets(300 * megabyte, "cuda") == 1
    assert count_sets(20 * megabyte, "cuda") * 20 >= 192
    assert count_sets(0, "cuda") == count_sets(1, "cuda") <= 64


def test_a_timer_on_a_cpu_times_runs_with_the_clock() -> None:
    calls: list[int] = []
    timer = Timer([lambda: calls.append(1)], "cpu")
    assert timer.way == "clock"
    assert timer.sample() > 0
    assert len(calls) == 2
    assert median_ms([lambda: None], "cpu") < 1


def test_jobs_that_run_ahead_may_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(tmp_path / name) for name in ("one", "absent/two", "three")]
    run_ahead(os.mkdir, names, time.monotonic() + 60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three"]
    assert f"{names[1]} was not compiled ahead: FileNotFoundError" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_timer_on_a_gpu_replays_a_graph() -> None:
    tensors = [torch.zeros(2**20, device="cuda") for _ in range(3)]
    timer = Timer([lambda t=t: t.add_(1) for t in tensors], "cuda")
    assert timer.way == "graph"
    before = [float(t[0]) for t in tensors]
    ms = timer.sample()
    # 8 MiB at no more than 10 TB/s, and no less than 10 GB/s.
    assert 1e-4 < ms < 1
    assert all(float(t[0]) > value for t, value in zip(tensors, before, strict=True))


@pytest.mark.gpu
def test_every_launch_runs_on_a_gpu_with_its_default() -> None:
    for name, launch in find_launches("masked_conv2d").items():
        if "resnet_16" in name:
            with torch.device("cuda"):
                run = launch.make()
                assert launch.alternative is not None
                alternative = launch.alternative()
            run()
            alternative()
    torch.cuda.synchronize()
