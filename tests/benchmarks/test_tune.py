"""The tuner: which configuration it chooses, what it writes, and that launchers find it again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.harness.ahead import run_ahead
from benchmarks.harness.timing import Run, Timer, count_sets, median_ms
from benchmarks.launches.catalogue import find_launches
from benchmarks.launches.launch import Launch, route
from benchmarks.launches.masks import mask_weights, select
from benchmarks.tuning.tune import Answer, _Bench, merged, tune_launches
from benchmarks.tuning.worker import tune_launch
from hypermask_fast.backends import choice
from hypermask_fast.kernels import tuning

_CONFIGS = ({"BLOCK": 1}, {"BLOCK": 2}, {"BLOCK": 3})
_MS = {1: 3.0, 2: 1.0, 3: 2.0}
_DEVICE = torch.device("cpu")


def _launch(kernel: str = "k", rows: int = 8, alternative: bool = False) -> Launch:
    def make() -> Run:
        return lambda: tuning.choose(kernel, _CONFIGS, _DEVICE, rows=rows)["BLOCK"]

    return Launch(make, kernel, _CONFIGS, (lambda: lambda: 9) if alternative else None)


def _time(runs: Sequence[Run]) -> float:
    """Milliseconds by the configuration that the launch runs with, or 9 of an alternative."""
    return _MS.get(runs[0](), 9.0)  # type: ignore[call-overload]


def _sets(make: Callable[[], Run]) -> Sequence[Run]:
    return [make()]


def _tune(
    launch: Launch,
    timer: Callable[[Sequence[Run]], float] = _time,
    known: Sequence[Mapping[str, int]] = (),
    works: bool = True,
) -> Answer:
    return tune_launch(launch, known, timer, _sets, lambda make: make(), lambda: works)


def _measure(name: str, launch: Launch, known: Sequence[Mapping[str, int]]) -> Answer:
    return _tune(launch, known=known)


def test_fastest_configuration_is_written_with_its_sizes() -> None:
    assert _tune(_launch(alternative=True)).entry == {
        "sizes": {"rows": 8},
        "config": {"BLOCK": 2},
        "ms": 1.0,
        "alternative_ms": 9.0,
    }
    assert "alternative_ms" not in (_tune(_launch()).entry or {})
    assert _tune(_launch(), known=[{"rows": 8}]) == Answer(None)


def _fails(runs: Sequence[Run]) -> float:
    if runs[0]() == 2:
        raise RuntimeError("out of resources")
    return _time(runs)


def test_configurations_that_fail_are_told_of_and_left_out() -> None:
    answer = _tune(_launch(), _fails)
    assert answer.entry is not None
    assert answer.entry["config"] == {"BLOCK": 3}
    assert answer.fault is None
    assert any("out of resources" in line and "'BLOCK': 2" in line for line in answer.lines)


def test_a_device_that_fails_leaves_what_was_measured_before() -> None:
    entries = []

    def timer(runs: Sequence[Run]) -> float:
        entries.append(runs[0]())
        return _fails(runs)

    launch = _launch()
    answer = tune_launch(
        launch, (), timer, _sets, lambda make: make(), lambda: _CONFIGS[1]["BLOCK"] not in entries
    )
    assert entries == [1, 2]
    assert answer.entry is not None
    assert answer.entry["config"] == {"BLOCK": 1}
    assert answer.fault == "the device failed at {'BLOCK': 2}"
    assert _tune(launch, works=False) == Answer(
        None, "the default configuration is a fault of the device"
    )


def test_nothing_is_written_where_nothing_runs() -> None:
    def fails(runs: Sequence[Run]) -> float:
        raise RuntimeError("no")

    assert _tune(_launch(), fails).entry is None


def test_entries_are_merged_and_found_by_launchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "table.json"
    old = {"sizes": {"rows": 8}, "config": {"BLOCK": 3}, "ms": 5.0}
    kept = {"sizes": {"rows": 512}, "config": {"BLOCK": 1}, "ms": 5.0}
    file.write_text(json.dumps({"this": {"k": [old, kept]}, "other": {"k": [old]}}))
    launches = {"a": _launch(), "b": _launch(), "c": _launch("l", 4)}
    assert tune_launches(launches, "this", file, _measure, log=lambda _: None) == 2
    table = json.loads(file.read_text())
    new = {"sizes": {"rows": 8}, "config": {"BLOCK": 2}, "ms": 1.0}
    assert table["this"]["k"] == [new, kept]
    assert table["this"]["l"] == [{**new, "sizes": {"rows": 4}}]
    assert table["other"]["k"] == [old]
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]

    monkeypatch.setattr(tuning, "_table", lambda: table)
    monkeypatch.setattr(tuning, "_device_name", lambda index: "this")
    nearest = tuning._nearest.__wrapped__
    monkeypatch.setattr(tuning, "_nearest", nearest)
    device = torch.device("cuda", 0)
    assert tuning.choose("k", _CONFIGS, device, rows=16) == {"BLOCK": 2}
    assert tuning.choose("k", _CONFIGS, device, rows=300) == {"BLOCK": 1}


def test_tuning_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    old = {"sizes": {"rows": 8}, "config": {"BLOCK": 3}, "ms": 5.0}
    gone = {"sizes": {"rows": 4}, "config": {"BLOCK": 99}, "ms": 5.0}
    file.write_text(json.dumps({"this": {"k": [old, gone]}}))
    launches = {"a": _launch(), "b": _launch(rows=4)}
    assert tune_launches(launches, "this", file, _measure, resume=True, log=lambda _: None) == 1
    entries = json.loads(file.read_text())["this"]["k"]
    # What is no longer shipped is timed again.
    assert entries == [{**old, "sizes": {"rows": 4}, "config": {"BLOCK": 2}, "ms": 1.0}, old]


def test_a_launch_whose_process_ends_leaves_the_others_alive(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    asked, lines = [], []

    def measure(name: str, launch: Launch, known: Sequence[Mapping[str, int]]) -> Answer:
        asked.append(name)
        assert file.exists() == (len(asked) > 1)
        return Answer(None, "it ended") if launch.kernel == "bad" else _measure(name, launch, known)

    names = {"a": _launch(), **{f"bad{n}": _launch("bad", n) for n in (1, 2, 3)}, "z": _launch("z")}
    assert tune_launches(names, "this", file, measure, log=lines.append) == 2
    assert asked == ["a", "bad1", "bad2", "z"]
    assert json.loads(file.read_text())["this"].keys() == {"k", "z"}
    assert "bad3 was left out: 2 processes ended at launches of bad" in lines


def test_entries_of_other_bits_or_layouts_are_not_near(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "this": {
            "k": [
                {"sizes": {"rows": 8, "bits": 32}, "config": {"BLOCK": 1}, "ms": 1.0},
                {"sizes": {"rows": 999, "bits": 16}, "config": {"BLOCK": 2}, "ms": 1.0},
            ]
        }
    }
    monkeypatch.setattr(tuning, "_table", lambda: table)
    find = tuning._nearest.__wrapped__
    assert find("this", "k", (("rows", 8), ("bits", 16)))["config"] == {"BLOCK": 2}
    assert find("this", "k", (("rows", 8), ("bits", 64))) is None


def test_tuning_stops_when_its_time_is_over(tmp_path: Path) -> None:
    lines: list[str] = []
    file = tmp_path / "table.json"
    arguments = ("this", file, _measure)
    assert tune_launches({"a": _launch()}, *arguments, end=0.0, log=lines.append) == 0
    assert lines == ["out of time: 1 launches were not timed"]
    assert not file.exists()


@pytest.mark.parametrize(
    ("make", "name", "sizes"),
    [
        (partial(select._one, 50), "mask_threshold", {"entries": 50}),
        (
            partial(mask_weights._whole, ((4, 5), (3,))),
            "mask_weights",
            {"entries": 23, "tensors": 2},
        ),
    ],
)
def test_a_route_is_compared_with_the_way_without_kernels(
    make: Callable[[], Run], name: str, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_why_no_kernel", lambda op, tensor: None)
    ways: list[str] = []

    def time_runs(runs: Sequence[Run]) -> float:
        with monkeypatch.context() as patch:
            patch.setattr(choice._chosen, "notes", notes := [])
            runs[0]()
        ways.append(notes[0])
        return float(len(ways))

    entry = _tune(route(name, make), time_runs).entry
    assert ways == [f"{name}: PyTorch, as backend 'reference' asks", f"{name}: Triton kernel"]
    expected = {"sizes": sizes, "alternative_ms": 1.0, "config": {"kernels": 1}, "ms": 2.0}
    assert entry == expected
    monkeypatch.setattr(tuning, "measured", lambda *_, **__: entry)
    assert tuning.was_slower(name, torch.device("cuda"), **sizes)


def test_merged_replaces_the_same_sizes_only() -> None:
    one, other = ({"sizes": {"rows": n}, "ms": 1.0} for n in (4, 2))
    again = {**one, "ms": 0.5}
    table = merged(merged(merged({}, "d", "k", one), "d", "k", other), "d", "k", again)
    assert table == {"d": {"k": [other, again]}}


def test_every_kernel_that_chooses_is_tuned_and_compared_where_a_route_needs_it() -> None:
    launches = find_launches()
    compared, routes = (
        ("masked_linear", "masked_conv2d"),
        ("head", "mask_weights", "mask_threshold", "top_k"),
    )
    for name, launch in launches.items():
        assert any(launch.configs), name
        is_compared = launch.kernel.startswith(compared) or launch.kernel in routes
        assert bool(launch.alternative) == is_compared, name
    stems = list(dict.fromkeys(name.partition("/")[0] for name in launches))
    assert stems[:2] == ["step_rows", "mask_logits"]
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
    assert count_sets(20 * megabyte, "cuda") * 20 >= 160
    assert count_sets(0, "cuda") == count_sets(1, "cuda") <= 200


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
def test_a_process_times_launches_on_a_gpu(tmp_path: Path) -> None:
    file, bench = tmp_path / "table.json", _Bench(time.monotonic() + 200)
    names = ["mask_weights/forward-many", "masked_linear/input_rows128_16bit"]
    launches = {name: launch for name, launch in find_launches().items() if name in names}
    try:
        assert tune_launches(launches, "this", file, bench.measure) == 2
        again = tune_launches(launches, "this", file, bench.measure, resume=True)
    finally:
        bench.close()
    assert again == 0
    table = json.loads(file.read_text())["this"]
    assert all(entry["ms"] > 0 for entries in table.values() for entry in entries)
    assert table["masked_linear_input"][0]["alternative_ms"] > 0


@pytest.mark.gpu
def test_launches_run_on_a_gpu_with_their_defaults() -> None:
    for name, launch in find_launches("masked_conv2d").items():
        if "resnet_16" in name:
            with torch.device("cuda"):
                run = launch.make()
                assert launch.alternative is not None
                alternative = launch.alternative()
            run()
            alternative()
    torch.cuda.synchronize()
