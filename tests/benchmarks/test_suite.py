"""A suite's time, its failures, and what is on the disk at every moment."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import suite
from benchmarks.__main__ import main
from benchmarks.harness.files import write_json
from benchmarks.harness.process import Worker
from benchmarks.kernels.case import KernelCase, Problem
from benchmarks.kernels.catalogue import find_kernel_cases
from benchmarks.kernels.runner import KernelBench, family
from benchmarks.kernels.worker import answer_case
from benchmarks.report import render
from benchmarks.steps import runner, sizes
from benchmarks.steps.case import StepCase
from benchmarks.steps.catalogue import find_cases
from benchmarks.steps.runner import run_steps
from benchmarks.suite import Results, _Suite
from hypermask_fast.errors import ConfigError

_OPTIONS = {
    **{"suite": "cpu", "size": "tiny", "device": "cpu", "threads": 1},
    "clock": "elapsed",
}
_WHERE = {
    "machine": {"cpu": "none", "cores": 2, "threads": 1},
    "versions": {"torch": "0"},
    "commit": None,
}


def _row(name: str, **changes: Any) -> dict[str, Any]:
    row = {
        **{"case": name, "variant": "ours", "suite": "cpu", "size": "tiny", "ratio": None},
        **{"median_ms": 2.0, "p20_ms": 1.0, "p80_ms": 3.0, "error_size": "tiny"},
    }
    return row | changes


def _suite(results: Results) -> _Suite:
    return _Suite(results, _OPTIONS, ["ours"], 0.01)


def _read(file: Path) -> list[tuple[str, str | None]]:
    return [(row["case"], row.get("skipped")) for row in json.loads(file.read_text())]


def test_rows_are_on_the_disk_after_each_case_and_a_failing_one_leaves_the_others_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.json"
    results = Results(file, _WHERE)
    written: list[int] = []

    def steps(cases: list[StepCase], *_: Any) -> Iterator[tuple[StepCase, list[dict[str, Any]]]]:
        written.append(len(_read(file)) if file.exists() else 0)
        if cases[0].name == "split-mnist-t0":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        yield cases[0], [_row(cases[0].name)]

    monkeypatch.setattr(suite, "run_steps", steps)
    names = ["permuted-mnist-t9", "split-mnist-t0", "split-mnist-t4"]
    _suite(results).steps(find_cases("cpu", names, "tiny"))
    assert written == [0, 1, 2]
    reason = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert _read(file) == [(names[0], None), (names[1], reason), (names[2], None)]
    table = render(json.loads(file.read_text()))
    assert f"not measured ({reason}): split-mnist-t0." in table
    assert "not measured (not run): permuted-mnist-t0, permuted-mnist-t4, resnet-t0" in table
    assert "| permuted-mnist-t9 | ours | CPU, 1 thread | 2 (1 to 3)" in table


def test_a_run_ends_in_time_and_tells_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.json"
    results = Results(file, _WHERE, minutes=1 / 60)

    def steps(cases: list[StepCase], *_: Any) -> Iterator[tuple[StepCase, list[dict[str, Any]]]]:
        time.sleep(max(0.0, results.left()))
        yield cases[0], [_row(cases[0].name)]

    monkeypatch.setattr(suite, "run_steps", steps)
    _suite(results).steps(find_cases("cpu", ["split-mnist-t4", "split-mnist-t0"], "tiny"))
    assert _read(file) == [("split-mnist-t4", None), ("split-mnist-t0", "out of time")]


@pytest.mark.long
def test_a_resumed_run_measures_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    failed = {**_row("split-mnist-t0", failed="no"), **_WHERE}
    del failed["median_ms"]
    write_json(file, [{**_row("split-mnist-t4"), **_WHERE}, failed])
    arguments = ["run", "--suite", "cpu", "--size", "tiny", "--threads", "1", "--seconds", "0.1"]
    cases = ["--case", "split-mnist-t4", "split-mnist-t0", "--variants", "ours", "--resume"]
    assert main([*arguments, *cases, "--json", str(file)]) == 0
    old, new = json.loads(file.read_text())
    assert (old["case"], old["median_ms"]) == ("split-mnist-t4", 2.0)
    assert new["case"] == "split-mnist-t0"
    assert new["median_ms"] > 0


@pytest.mark.long
def test_variants_of_several_cases_start_together_and_one_that_dies_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    make = runner._open_worker

    def open_worker(variant: str, case: StepCase, options: dict[str, Any]) -> Worker:
        opened.append(f"{case.name} {variant}")
        if variant == "ours":
            return make(variant, case, options)
        return Worker("benchmarks.absent", {}, {})

    monkeypatch.setattr(runner, "_open_worker", open_worker)
    cases = find_cases("cpu", ["split-mnist-t0", "split-mnist-t4"], "tiny")
    ready: list[int] = []
    found = run_steps(
        *(cases, ["ours", "eager"], _OPTIONS, 0.05),
        before_timing=lambda: ready.append(len(opened)),
    )
    for case, (ours, eager) in found:
        assert ours["case"] == case.name
        assert ours["median_ms"] > 0
        # Float64 died too: then an error is unknown.
        assert "max_error" not in ours
        assert "No module named benchmarks.absent" in eager["failed"]
    assert ready == [6]


def test_batches_fit_in_memory_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_available_bytes", lambda device: 140 * 10**9)
    cases = find_cases("gpu")
    found = sizes.batches(cases, ["published", "eager", "ours-eager", "ours"], "cuda")
    assert [case for batch in found for case in batch] == cases
    assert ["vit-b16-t0"] in [[case.name for case in batch] for batch in found]
    assert max(map(len, found)) > 2
    for batch in found:
        if batch[0].name == "vit-b16-t0":
            continue
        variants = ("float64", "published", "ours")
        needs = [sizes.needed(v, c) for c in batch for v in variants]
        assert sum(needs) <= 0.9 * 140 * 10**9
    assert all(len(batch) == 1 for batch in sizes.batches(cases, ["ours"], "cpu"))


def test_an_interpreter_is_refused_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    file = ["--json", str(tmp_path / "rows.json")]
    assert main(["run", "--suite", "gpu", *file]) == 2
    assert main(["tune", *file]) == 2
    assert capsys.readouterr().err.count("TRITON_INTERPRET is set") == 2


@pytest.mark.long
def test_kernels_of_a_family_are_left_out_after_two_faults(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    options = {**_OPTIONS, "suite": "gpu", "device": device.type}
    (present,) = find_kernel_cases(["head-logits"], "tiny")
    # Two processes that end at once; one that begins is slow, and the last is enough.
    modules = iter(["benchmarks.absent"] * 2)
    monkeypatch.setattr(
        "benchmarks.kernels.runner.Worker",
        lambda module, *rest: Worker(next(modules, module), *rest),
    )
    with KernelBench(options, 0.01) as bench:
        for number in (1, 2):
            (row,) = bench.run_case(KernelCase(f"a-b-{number}", lambda: _ABSENT, 1, ("kernel",)))
            assert "failed" in row
        with pytest.raises(ConfigError, match="2 processes ended at cases of a-b"):
            bench.run_case(KernelCase("a-b-3", lambda: _ABSENT, 1, ("kernel",)))
        assert all("median_ms" in row for row in bench.run_case(present))
    assert family("linear-fwd-b1-w256-fp32") == "linear-fwd"


_ABSENT = Problem({}, tuple)


def test_variants_fail_alone_and_after_a_fault_together(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.ones(1)

    def fails() -> tuple[torch.Tensor]:
        raise RuntimeError("out of resources: shared memory")

    runs = {"kernel": fails, "product": lambda: (one,), "eager": lambda: (one,)}
    case = KernelCase("c", lambda: Problem(runs, lambda: (one.double(),)), 1, tuple(runs))
    answer = answer_case(case, "cpu", 0.0)
    assert not answer["fault"]
    assert "out of resources" in answer["rows"]["kernel"]["failed"]
    assert answer["rows"]["product"]["median_ms"] > 0

    def broken(*_: Any) -> Any:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr("benchmarks.kernels.worker._timers", broken)
    answer = answer_case(case, "cpu", 0.0)
    assert answer["fault"]
    assert "out of resources" in answer["rows"]["kernel"]["failed"]
    assert "not measured: RuntimeError: illegal" in answer["rows"]["eager"]["failed"]


@pytest.mark.gpu
def test_steps_and_kernels_are_measured_on_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    arguments = ["--suite", "gpu", "--size", "tiny", "--seconds", "0.1", "--json", str(file)]
    cases = ["split-mnist-t4", "resnet-t9", "head-step-t2", "linear-both-*-fp32"]
    assert main(["run", *arguments, "--case", *cases]) == 0
    rows = json.loads(file.read_text())
    assert not [row["failed"] for row in rows if "failed" in row]
    assert len({row["case"] for row in rows}) == len(cases)
    assert all(row["max_error"] < 1e-2 for row in rows)
    graphed = [row for row in rows if row["variant"] == "ours"]
    assert [row["status"] for row in graphed] == [{"graph": "yes", "compile": "yes"}] * 2
    assert torch.cuda.get_device_name().removeprefix("NVIDIA ") in render(rows)
