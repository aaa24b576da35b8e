"""Cases of every method: the plain algorithm and the package's step do the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import suite
from benchmarks.__main__ import main
from benchmarks.report import render
from benchmarks.steps.case import StepCase
from benchmarks.steps.catalogue import find_cases
from benchmarks.steps.engine import first_step
from hypermask_fast import methods
from hypermask_fast.benching.first_step import errors

EPS = torch.finfo(torch.float32).eps
_CASES = find_cases("gpu", None, "tiny")
_METHODS = ("hnet-*", "hyperinterval-*", "supsup-*", "exssnet-*")


@pytest.mark.parametrize("case", _CASES, ids=[case.name for case in _CASES])
def test_first_steps_are_those_of_float64(case: StepCase) -> None:
    exact = first_step(case.make_engine("float64"), case)
    plain = errors(first_step(case.make_engine("published"), case), exact)
    ours = errors(first_step(case.make_engine("ours"), case), exact)
    # Sums have some hundred terms, and residuals are a tenth of what they are differences of.
    bounds = {name: max(2 * error, 1000 * EPS) for name, error in plain.items()}
    assert ours.keys() == plain.keys()
    assert not {name: error for name, error in ours.items() if error > bounds[name]}


@pytest.mark.parametrize(
    "name", ["hnet-split-mnist-t4", "hyperinterval-split-mnist-t4", "exssnet-lenet-weights"]
)
def test_an_error_of_one_percent_is_seen(name: str) -> None:
    (case,) = find_cases("cpu", [name], "tiny")
    exact = first_step(case.make_engine("float64"), case)
    found = first_step(case.make_engine("ours"), case)
    for part in found:
        if part.startswith("expected."):
            continue
        wrong = errors({**found, part: 1.01 * found[part]}, exact)
        # An embedding that a dead unit hides has no gradient, and no error in proportion.
        assert wrong[part] == pytest.approx(0.01, rel=0.01) or not found[part].any()


@pytest.mark.parametrize("pattern", _METHODS)
def test_later_steps_have_the_losses_of_the_plain_algorithm(pattern: str) -> None:
    for case in find_cases("cpu", [pattern], "tiny"):
        x, y = case.make_batch()
        engines = [case.make_engine(variant) for variant in ("published", "ours")]
        for _ in range(4):
            plain, ours = (engine.step(x, y) for engine in engines)
            for name in plain._fields:
                # Adam divides rounding by itself only where a gradient is 0.
                torch.testing.assert_close(
                    getattr(ours, name), getattr(plain, name), rtol=1e-3, atol=1e-6
                )


def test_every_method_has_cases_in_both_suites_under_the_same_names() -> None:
    for suite_name in ("cpu", "gpu"):
        names = [case.name for case in find_cases(suite_name)]
        learners = Path(methods.__file__).parent.glob("*/learner.py")
        # Replay is HNET's step and an ordinary classifier's, of which there is no other algorithm.
        without = {"hypermask", "replay", "hnet_tir", "hnet_r"}
        for method in {path.parent.name for path in learners} - without:
            assert [name for name in names if name.startswith(f"{method}-")]
        assert names == [case.name for case in find_cases(suite_name, None, "tiny")]


def test_published_sizes_are_in_the_suite_of_a_gpu() -> None:
    def parameters(name: str) -> int:
        (case,) = find_cases("gpu", [name])
        return case.parameters()

    rows = 784 * 400 + 400 + 400 * 400 + 400 + 400 * 10 + 10
    assert parameters("hnet-split-mnist-full-t4") == rows * (26 + 4)
    assert parameters("supsup-gem-resnet18-top-k") == 1_090_940
    assert parameters("supsup-fc1024-threshold") == 2_363_392
    (resnet,) = find_cases("gpu", ["exssnet-gem-resnet18-mask"])
    assert resnet.make_batch()[0].shape == (64, 3, 32, 32)


def test_a_gpu_measures_each_method_even_when_it_is_short_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    class Bench:
        def __init__(self, *_: Any) -> None: ...
        def __enter__(self) -> Bench:
            return self

        def __exit__(self, *_: object) -> None: ...
        def run_case(self, case: Any) -> list[dict[str, Any]]:
            taken.append(case.name)
            return []

    def steps(cases: list[StepCase], *_: Any) -> Any:
        taken.extend(case.name for case in cases)
        return iter(())

    monkeypatch.setattr(suite, "run_steps", steps)
    monkeypatch.setattr(suite, "KernelBench", Bench)
    assert main(["run", "--suite", "gpu", "--size", "tiny"]) == 0
    assert taken.index("hnet-split-mnist-t4") < taken.index("head-logits")
    assert taken.index("hyperinterval-split-mnist-t4") < taken.index("head-logits")
    assert taken.index("supsup-fc1024-top-k") < taken.index("resnet-t0")
    assert {case.name for case in _CASES} <= {*taken}


@pytest.mark.long
def test_other_methods_are_measured_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    name = "inference-entropy-one-by-one"
    arguments = ["--size", "tiny", "--seconds", "0.1", "--threads", "1", "--clock", "processor"]
    variants = ["--variants", "published", "eager", "ours"]
    assert main(["run", "--case", name, *arguments, *variants, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["case"], row["variant"]) for row in rows] == [(name, "published"), (name, "ours")]
    for row in rows:
        assert row["clock"] == "processor"
        assert row["median_ms"] > 0
        assert 0 <= row["max_error"] < 1e-4
        assert row["floor_mib"] is None
    assert f"| {name} | ours | CPU, 1 thread, processor time |" in render(rows)
    assert "not measured" in capsys.readouterr().out


def test_a_share_of_a_batch_counts_as_the_whole_batch() -> None:
    (case,) = find_cases("cpu", ["inference-entropy-one-by-one"])
    (small,) = find_cases("cpu", ["inference-entropy-one-by-one"], "tiny")
    assert small.make_engine("published").share == pytest.approx(3 / 8)
    assert small.make_engine("ours").share == 1
    assert len(case.make_batch()[0]) == 10_000
