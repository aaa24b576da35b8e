"""The benchmark suite at its smallest, and a guard of the layers' host overhead."""

from __future__ import annotations

import copy
import json
import timeit
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.__main__ import main
from benchmarks.kernels.case import KernelCase, Problem, draw, error
from benchmarks.kernels.catalogue import find_kernel_cases
from benchmarks.kernels.runner import KernelBench
from benchmarks.kernels.worker import compared
from benchmarks.report import render
from benchmarks.steps.catalogue import find_cases
from benchmarks.steps.engine import Trained, first_step, graphed
from benchmarks.steps.hypermask_cases import (
    _LOSSES,
    _named,
    find_case,
    make_learner,
)
from benchmarks.steps.sizes import groups_of
from hypermask_fast.benching import hypnettorch
from hypermask_fast.benching.first_step import errors
from hypermask_fast.benching.published import percentile, published_of
from hypermask_fast.conversion.network import ConvertedNetwork
from hypermask_fast.layers.masked import MaskedLinear
from hypermask_fast.native import library
from hypermask_fast.training.step import TrainingStep
from tests.support.graph_stand_ins import RecordedGraphs
from tests.support.hypermask_cases import adam_of

_FIELDS = {
    *("case", "variant", "median_ms", "p20_ms", "p80_ms", "ratio", "max_error", "peak_mib"),
    *("bytes_over_floor", "machine", "versions", "commit"),
}


def _row(variant: str, **changes: Any) -> dict[str, Any]:
    row = {
        **{"case": "c-t0", "variant": variant, "suite": "cpu", "size": "tiny"},
        **{"median_ms": 2.0, "p20_ms": 1.0, "p80_ms": 3.0, "ratio": 7.5, "max_error": 1e-6},
        **{"error_size": "tiny", "peak_mib": 3.0, "bytes_over_floor": 4.0, "commit": "abc"},
        "machine": {"cpu": "none", "cores": 2, "threads": 1},
        "versions": {"torch": "0"},
    }
    return row | changes


def test_the_page_on_benchmarks_has_the_recorded_table() -> None:
    root = Path(__file__).parents[2]
    rows = json.loads((root / "benchmarks" / "results" / "cpu.json").read_text())
    assert render(rows) in (root / "docs" / "benchmarks.md").read_text()


def test_the_page_on_benchmarks_has_the_ratios_of_one_thread() -> None:
    root = Path(__file__).parents[2]
    rows = json.loads((root / "benchmarks" / "results" / "cpu_one_thread.json").read_text())
    ratios: dict[str, list[float]] = {}
    for row in rows:
        assert row["clock"] == "processor"
        if row["variant"] != "published":
            ratios.setdefault(row["case"], []).append(row["ratio"])
    page = (root / "docs" / "benchmarks.md").read_text()
    for case, found in ratios.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{case}` "))
        cells = [float(cell.replace(",", "")) for cell in line.split("|")[3:5]]
        assert cells == pytest.approx(found, abs=0.5 if found[0] > 1000 else 0.05)


@pytest.mark.parametrize("p", [0.0, 12.5, 30.0, 100.0])
def test_published_percentile_is_linear_interpolation(p: float) -> None:
    values = torch.rand(401, dtype=torch.float64)
    expected = torch.quantile(values, p / 100)
    torch.testing.assert_close(percentile(values, p), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("split-mnist-t4", {"earlier": 2}, id="sparsity-masked-drift"),
        pytest.param("resnet-t9", {"earlier": 2, "sparsity": 30.0}, id="conv-plain-drift"),
        pytest.param("permuted-mnist-t0", {}, id="first-task"),
    ],
)
def test_published_losses_and_gradients_equal_the_learners(
    name: str, changes: dict[str, Any]
) -> None:
    case = replace(find_case("cpu", name, "tiny"), **changes)
    x, y = case.make_batch()
    learner = make_learner(case).double()
    ours = learner.losses(x.double(), y, case.earlier)
    gradients = torch.autograd.grad(ours.total, [*learner.net.parameters()])
    plain = published_of(make_learner(case).double())
    published = plain.losses(x.double(), y)
    for key, value in published._asdict().items():
        torch.testing.assert_close(value, getattr(ours, key), rtol=1e-12, atol=0)
    assert (published.output_reg > 0) == (case.earlier > 0)
    published.total.backward()
    size = torch.cat([g.flatten() for g in gradients]).norm()
    for p, g in zip(plain.net.parameters(), gradients, strict=True):
        assert p.grad is not None
        assert (p.grad - g).norm() <= 1e-12 * size


@pytest.mark.parametrize("variant", ["published", "eager", "ours"])
def test_first_step_is_as_exact_as_float32_allows(variant: str) -> None:
    (case,) = find_cases("cpu", ["split-mnist-t4"], "tiny")
    exact = first_step(case.make_engine("float64"), case)
    found = first_step(case.make_engine(variant), case)
    each = errors(found, exact)
    # Residuals are a tenth of the logits they are differences of; sums have some hundred terms.
    assert max(each.values()) < 1000 * torch.finfo(torch.float32).eps
    found["gradient.head"] *= 1.01
    found["after.net"] *= float("nan")
    wrong = errors(found, exact)
    assert wrong["gradient.head"] == pytest.approx(0.01, rel=0.01)
    assert wrong["after.net"] == float("inf")


@pytest.mark.long
def test_run_writes_rows_and_report_prints_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    arguments = ["--suite", "cpu", "--size", "tiny", "--case", "split-mnist-t0", "--seconds", "0.1"]
    variants = ["--variants", "published", "ours-fallback", "--threads", "1"]
    assert main(["run", *arguments, *variants, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["variant"] for row in rows] == ["published", "ours-fallback"]
    for row in rows:
        assert row.keys() >= _FIELDS
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["ratio"] == pytest.approx(rows[0]["median_ms"] / row["median_ms"])
        assert 0 < row["max_error"] < 1e-4
        assert row["steps"] >= 3
    printed = capsys.readouterr().out
    assert main(["report", str(file)]) == 0
    assert capsys.readouterr().out == printed
    assert "| split-mnist-t0 | ours-fallback |" in printed


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        pytest.param({"max_error": 2e-6}, "| 7.5 |", id="within-twice"),
        pytest.param({"max_error": 2.1e-6}, "| none: wrong |", id="beyond-twice"),
        pytest.param({"max_error": None}, "| none: wrong |", id="unknown"),
        pytest.param({"failed": "out of memory"}, "failed: out of memory", id="failed"),
        pytest.param({"error_size": "none", "max_error": 1e-6}, "1.0e-06* |", id="reduced-size"),
    ],
)
def test_report_prints_no_speed_up_of_a_wrong_row(changes: dict[str, Any], shown: str) -> None:
    table = render([_row("published"), _row("ours", **changes)])
    (line,) = (x for x in table.splitlines() if x.startswith("| c-t0 | ours"))
    assert shown in line
    assert ("7.5" in line) == (shown == "| 7.5 |" or "error_size" in changes)


def test_report_without_the_published_row_prints_no_speed_up() -> None:
    assert "7.5" not in render([_row("ours")])


def test_groups_keep_published_beside_each_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = find_cases("cpu", ["permuted-mnist-t9"])
    variants = ["published", "eager", "ours"]

    def groups(gigabytes: int) -> list[list[str]]:
        monkeypatch.setattr("benchmarks.steps.sizes._available_bytes", lambda _: gigabytes * 10**9)
        return groups_of(variants, case, "cpu")

    assert groups(100) == [variants]
    assert groups(14) == [["published", "eager"], ["published", "ours"]]
    assert groups(11) == [["published"], ["eager"], ["published", "ours"]]


def test_floor_counts_the_published_sizes() -> None:
    cases = [find_case("gpu", name, "full") for name in ("permuted-mnist-t9", "vit-b16-t0")]
    rows = 2_036_010
    assert cases[0].floor_bytes() == 28 * rows * 101 + 4 * 9 * rows
    assert cases[1].floor_bytes() / 28 / 101 == pytest.approx(86e6, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--case", "split-mnist-t5"], "did you mean", id="unknown-case"),
        pytest.param(["--json", "absent/rows.json"], "folder does not exist", id="no-folder"),
    ],
)
def test_run_refuses_in_a_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["run", "--suite", "cpu", "--size", "tiny", "--json", str(tmp_path / "rows.json")]
    assert main([*common, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["split-mnist-t4", "resnet-t9"])
def test_graphed_engine_replays_its_first_step_from_the_recorded_state(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a stand-in records are PyTorch's operations.
    monkeypatch.setattr(library, "load", lambda: None)
    case = find_case("gpu", name, "tiny")
    learner = make_learner(case)
    optimizer = adam_of(learner, lr=1e-3, weight_decay=0.0)
    for group in optimizer.param_groups:
        # As on a GPU: numbers of the host would stay those of the capture.
        group |= {"capturable": True, "lr": torch.tensor(1e-3)}
    cuda = RecordedGraphs(learner, optimizer)
    trained = Trained(_named(learner), [optimizer], _LOSSES, case._picked)
    engine = graphed(learner, TrainingStep(learner, optimizer), case, "cpu", trained, cuda)
    assert engine.status()["graph"] == "yes"
    replays = cuda.replays
    found = first_step(engine, case)
    assert cuda.replays == replays + 1
    exact = first_step(case.make_engine("float64"), case)
    plain = errors(first_step(case.make_engine("eager"), case), exact)
    assert max(errors(found, exact).values()) <= 2 * max(plain.values())


_CASES = find_kernel_cases(None, "tiny")


@pytest.mark.parametrize("case", _CASES, ids=[case.name for case in _CASES])
def test_kernels_and_alternatives_compute_the_same(case: KernelCase, device: torch.device) -> None:
    exact = [t.clone() for t in draw(case, device.type).exact()]
    variants = case.variants_on("cpu")
    found = {v: error(draw(case, device.type).runs[v](), exact) for v in variants}
    eps = torch.finfo(torch.bfloat16 if case.name.endswith("bf16") else torch.float32).eps
    assert max(found.values()) <= 2 * max(found["eager"], eps)


@pytest.mark.long
def test_kernel_cases_are_measured_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], device: torch.device
) -> None:
    file = tmp_path / "rows.json"
    names = ["head-logits", "linear-fwd-*-fp32"]
    arguments = ["--suite", "gpu", "--size", "tiny", "--case", *names, "--seconds", "0.01"]
    assert main(["run", *arguments, "--threads", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    cases = find_kernel_cases(names, "tiny")
    variants = [v for case in cases for v in case.variants_on(device.type)]
    assert [row["variant"] for row in rows] == variants
    for row in rows:
        assert row.keys() >= _FIELDS
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["gb_s"] == pytest.approx(row["floor_mib"] * 2**20 / row["median_ms"] / 1e6)
        assert 0 < row["max_error"] < 1e-5
    assert rows[0]["ratio"] == pytest.approx(rows[1]["median_ms"] / rows[0]["median_ms"])
    assert "| head-logits | kernel |" in capsys.readouterr().out


@pytest.mark.long
def test_kernel_case_whose_process_ends_fails_and_the_next_one_runs(device: torch.device) -> None:
    options = {"suite": "gpu", "size": "tiny", "device": device.type, "threads": 1}
    absent = KernelCase("absent", lambda: Problem({}, tuple), 1, ("kernel",))
    (present,) = find_kernel_cases(["head-logits"], "tiny")
    with KernelBench(options, 0.01) as bench:
        (row,) = bench.run_case(absent)
        assert "the process ended with status 1: KeyError: 'absent'" in row["failed"]
        assert all("median_ms" in row for row in bench.run_case(present))


def test_kernels_are_compared_with_the_fastest_right_alternative() -> None:
    rows = {
        "kernel": {"median_ms": 1.0, "max_error": 1.0},
        "product": {"median_ms": 2.0, "max_error": 2.1},
        "compile": {"median_ms": 3.0, "max_error": 2.0},
        "eager": {"median_ms": 4.0, "max_error": 1.0},
        "other": {"failed": "no"},
    }
    compared(rows)
    assert rows["kernel"]["ratio"] == 3.0
    assert rows["kernel"]["alternative"] == "compile"
    assert all(row["ratio"] is None for name, row in rows.items() if name != "kernel")


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        pytest.param({"max_error": 2e-6}, "| 7.5 (compile) |", id="right"),
        pytest.param({"max_error": 2.1e-6}, "| none: wrong |", id="wrong"),
        pytest.param({"failed": "no", "max_error": None}, "failed: no", id="failed"),
        pytest.param({"way": "events"}, ", events)", id="not-a-graph"),
    ],
)
def test_report_has_a_table_of_kernels(changes: dict[str, Any], shown: str) -> None:
    common = {"kind": "kernel", "case": "k", "way": "graph", "gb_s": 1.0}
    common["alternative"] = "compile"
    rows = [_row("ours"), _row("kernel", **common | changes)]
    table = render([*rows, _row("eager", **{**common, "ratio": None})])
    (line,) = (x for x in table.splitlines() if x.startswith("| k | kernel"))
    assert shown in line
    assert line.count("|") == 10
    assert table.index("| c-t0 | ours") < table.index("| k | kernel")


@pytest.mark.alone
def test_masked_linear_dispatch(benchmark: Any) -> None:
    if benchmark.disabled:
        pytest.skip("times nothing beside other tests: run it without -n")
    layer = MaskedLinear(8, 8)
    layer.set_mask(torch.randn(8, 8), torch.randn(8), sparsity=30.0)
    x = torch.randn(2, 8)
    with torch.no_grad():
        benchmark.pedantic(layer, args=(x,), rounds=20, iterations=50, warmup_rounds=2)
    # Some 20 us of six small operations; checks that read values back would be far beyond it.
    assert benchmark.stats.stats.median < 2e-3


@pytest.mark.alone
def test_context_of_a_forward(benchmark: Any) -> None:
    """What stands in for 64 layers' weights costs less than 20 us a layer beside plain layers."""
    if benchmark.disabled:
        pytest.skip("times nothing beside other tests: run it without -n")
    layers = 64
    plain = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))
    network = ConvertedNetwork(copy.deepcopy(plain), (), "test")
    names = [entry.name for entry in network.tensors]
    weights = dict(zip(names, (w.detach() for w in network.weights()), strict=True))
    x = torch.zeros(1, 2)

    def forward() -> None:
        with network.applied(weights) as net:
            net(x)

    with torch.no_grad():
        benchmark.pedantic(forward, rounds=200, warmup_rounds=5)
        alone = min(timeit.repeat(lambda: plain(x), number=1, repeat=200))
    assert (benchmark.stats.stats.min - alone) / layers < 20e-6


@pytest.mark.skipif(not hypnettorch.available(), reason="hypnettorch is not installed")
@pytest.mark.parametrize("name", ["split-mnist-t4", "resnet-t0"])
def test_hypnettorch_takes_the_published_step(name: str) -> None:
    (case,) = find_cases("cpu", [name], "tiny")
    exact = first_step(case.make_engine("float64"), case)
    plain = errors(first_step(case.make_engine("published"), case), exact)
    theirs = errors(first_step(case.make_engine("hypnettorch"), case), exact)
    assert theirs.keys() == plain.keys()
    assert max(theirs.values()) <= 2 * max(plain.values())
