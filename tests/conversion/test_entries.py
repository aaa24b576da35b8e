"""Manifests of a network's parameters, held against those of a checkpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from hypermask_fast.conversion.entries import check_manifest
from hypermask_fast.errors import CheckpointError


def _entry(**changes: Any) -> dict[str, Any]:
    entry = {"name": "fc.weight", "shape": (3, 4), "offset": 0, "masked": True, "reason": ""}
    return {**entry, **changes}


def test_equal_manifests_pass_through_json() -> None:
    current = [_entry(), _entry(name="fc.bias", shape=torch.Size([3]), offset=12)]
    check_manifest(json.loads(json.dumps(current)), current)


@pytest.mark.parametrize(
    ("current", "message"),
    [
        pytest.param(
            [_entry(), _entry(offset=99, shape=(5,))],
            r"entry 1 'fc.weight' has shape \[5\] in the model and \[3, 4\] in the checkpoint",
            id="shape-first",
        ),
        pytest.param([_entry(name="x"), _entry()], "entry 0 'fc.weight' has name 'x'", id="name"),
        pytest.param(
            [_entry(), _entry(offset=8)], "offset 8 in the model and 0 in the", id="offset"
        ),
        pytest.param([_entry(masked=False), _entry()], "masked False in the model", id="masked"),
        pytest.param(
            [_entry(reason="norm"), _entry()], "reason 'norm' in the model and ''", id="reason"
        ),
        pytest.param([_entry()], "entry 1 is absent in the model and 'fc.weight'", id="fewer"),
        pytest.param(
            [_entry(), _entry(), _entry(name="y")],
            "entry 2 is 'y' in the model and absent",
            id="more",
        ),
        pytest.param([_entry(bits=2), _entry()], "bits 2 in the model and None", id="new-field"),
    ],
)
def test_manifest_difference_is_named(current: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_manifest(json.loads(json.dumps([_entry(), _entry()])), current)
