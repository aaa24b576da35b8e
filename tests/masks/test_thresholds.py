"""Thresholds of several tasks at once, against those of each tensor by itself."""

from __future__ import annotations

import pytest
import torch

from hypermask_fast import reference
from hypermask_fast.backends import choice
from hypermask_fast.masks.thresholds import task_thresholds

SIZES, MASKED = [12, 1, 30], [True, True, False]


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("sparsity", [0.5, 30.0, 100.0, torch.tensor(30.0)])
def test_each_task_has_its_own(
    sparsity: float, kernel: bool, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel:
        monkeypatch.setattr(choice, "_why_no_kernel", lambda op, tensor: None)
    logits = torch.randn(tasks, sum(SIZES))
    found = task_thresholds(logits, SIZES, sparsity, MASKED)
    assert found is not None
    assert found.shape == (tasks, 3)
    for row, z in zip(found, logits, strict=True):
        parts = z.split(SIZES)
        for i in (0, 1):
            expected = reference.mask_threshold(parts[i], sparsity)
            torch.testing.assert_close(row[i], expected, rtol=1e-6, atol=0)


def test_there_is_none_where_every_entry_is_kept() -> None:
    assert task_thresholds(torch.randn(2, sum(SIZES)), SIZES, 0.0, MASKED) is None
