"""A configuration whose results are not the default's is found before it is timed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from benchmarks.harness.timing import Run
from benchmarks.launches.catalogue import find_launches
from benchmarks.launches.launch import Launch
from benchmarks.tuning.verify import Check, _far, tensors_of
from benchmarks.tuning.worker import tune_launch
from hypermask_fast.kernels import tuning

_CONFIGS = ({"BLOCK": 1}, {"BLOCK": 2}, {"BLOCK": 3})


def _changed(config: int, x: Tensor, out: Tensor) -> Tensor:
    x.add_(0.5 if config == 3 else 1)
    return out if config == 2 else torch.add(x, 1, out=out)


def test_configurations_whose_results_are_wrong_are_never_timed() -> None:
    """The third changes its input wrongly; the second leaves what it should write."""
    buffers = [torch.zeros(4) for _ in range(3)]
    made = []

    def make() -> Run:
        # As an allocator: the default's results stay, the memory of others is used again.
        out = buffers[min(2, len(made))]
        x = torch.randn(4)
        made.append(x)

        def run(x: Tensor, out: Tensor) -> Tensor:
            choice = tuning.choose("k", _CONFIGS, torch.device("cpu"), rows=8)["BLOCK"]
            return _changed(choice, x, out)

        return partial(run, x, out=out)

    launch = Launch(make, "k", ({"BLOCK": 1}, {"BLOCK": 1, "again": 1}, *_CONFIGS[1:]))
    check = Check(launch, lambda make: make())
    wrong = [check.fault(config) for config in launch.configs]
    assert wrong[:2] == [None, None]
    assert "nan away" in str(wrong[2])
    assert "5.0e-01 away" in str(wrong[3])
    timed: list[Any] = []

    def timer(runs: Sequence[Run]) -> float:
        timed.append(dict(tuning._forced["k"]))
        return 1.0

    made.clear()
    answer = tune_launch(
        launch, (), timer, lambda make: [make()], lambda make: make(), lambda: True
    )
    assert timed == [{"BLOCK": 1}, {"BLOCK": 1, "again": 1}]
    assert [line.partition(" is wrong")[0] for line in answer.lines[:2]] == [
        "{'BLOCK': 2}",
        "{'BLOCK': 3}",
    ]


@pytest.mark.parametrize(
    ("found", "is_wrong"),
    [
        pytest.param(torch.tensor([1.0, 100.0]), False, id="same"),
        pytest.param(torch.tensor([1.05, 100.0]), False, id="rounding-of-the-largest"),
        pytest.param(torch.tensor([1.2, 100.0]), True, id="one-entry"),
        pytest.param(torch.tensor([float("nan"), 100.0]), True, id="nan"),
        pytest.param(torch.tensor([1.0, 100.0], dtype=torch.float64), True, id="dtype"),
        pytest.param(torch.tensor([1.0]), True, id="shape"),
    ],
)
def test_results_are_compared_with_the_largest_magnitude(found: Tensor, is_wrong: bool) -> None:
    assert (_far(found, torch.tensor([1.0, 100.0])) is not None) == is_wrong


def test_real_launches_give_their_tensors_to_the_check() -> None:
    given = tensors_of(partial(max, torch.ones(1), [torch.ones(2), (torch.ones(3), None)], key=1))
    assert [len(t) for t in given] == [1, 2, 3]
    launch = find_launches("factored_adam")["factored_adam/permuted-10"]
    with torch.device("meta"), mock.patch("benchmarks.launches.head.factored_adam.tenth_step"):
        assert len(tensors_of(launch.make())) == 8
