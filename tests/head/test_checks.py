"""Wrong arguments of the passes over the head are refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hypermask_fast.head.frozen import freeze
from hypermask_fast.head.types import KeptSample
from tests.support.head_cases import head_of, make_head, step, tensors

PARTS = ("weight", "bias", "exp_avg", "exp_avg_sq", "bias_exp_avg", "bias_exp_avg_sq")
DOUBLES: Any = {"dtype": torch.float64}
WRONG = [
    pytest.param({"weight": torch.zeros(4, 6, **DOUBLES).t()}, "A has strides", id="A-strides"),
    pytest.param({"weight": torch.zeros(6, 4).half()}, "A is torch.float16", id="A-dtype"),
    pytest.param({"exp_avg": torch.zeros(4, 6, **DOUBLES).t()}, "exp_avg has strides", id="m"),
    pytest.param(
        {"exp_avg": torch.zeros(6, 4).half()}, "exp_avg is torch.float16; expected A's", id="half"
    ),
    pytest.param(
        {"exp_avg": torch.zeros(6, 4).bfloat16()}, "exp_avg_sq is torch.float64", id="mixed"
    ),
    pytest.param({"kept": torch.zeros(6, 2, **DOUBLES).t()}, "kept has strides", id="targets"),
    pytest.param(
        {"kept": torch.zeros(3, 6, **DOUBLES)},
        r"kept has shape \(3, 6\); expected \(2, 6\)",
        id="targets-shape",
    ),
    pytest.param(
        {"hidden": torch.zeros(3, 5, **DOUBLES)},
        r"hidden has shape \(3, 5\); expected \(t \+ 1, 4\)",
        id="hidden-shape",
    ),
    pytest.param(
        {"hidden": torch.zeros(3, 4)}, "hidden is torch.float32; convert it to", id="hidden-dtype"
    ),
    pytest.param({"step": 0}, "step is 0; count the first update as 1", id="step"),
    pytest.param({"kept": torch.zeros(2, 6).half()}, "kept is torch.float16", id="targets-dtype"),
    pytest.param(
        {"kept": freeze(torch.zeros(6, 4, **DOUBLES), torch.zeros(6), torch.zeros(2, 4))},
        "frozen bias is torch.float32",
        id="frozen-dtype",
    ),
    pytest.param(
        {"kept": freeze(*(torch.zeros(s, **DOUBLES) for s in ((6, 4), 6, (3, 4))))},
        r"frozen hidden has shape \(3, 4\); expected \(2, 4\)",
        id="frozen-tasks",
    ),
    pytest.param(
        {
            "kept": KeptSample(
                torch.zeros(2, 6, **DOUBLES), torch.zeros(5, 4, **DOUBLES), torch.arange(2)
            )
        },
        r"rows of the batch has shape \(2,\); expected \(3\)",
        id="sampled-rows",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_arguments_are_refused_in_a_sentence(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "dz": torch.zeros(6, dtype=torch.float64),
        "hidden": torch.zeros(3, 4, dtype=torch.float64),
        "kept": torch.zeros(2, 6, dtype=torch.float64),
    }
    parts = dict(zip(PARTS, tensors(make_head(6, 4)), strict=True))
    rest = {name: value for name, value in changes.items() if name not in parts}
    head = head_of([changes.get(name, part) for name, part in parts.items()])
    with pytest.raises((TypeError, ValueError), match=message):
        step(head, coefficient=1.0, **{**given, **rest})
