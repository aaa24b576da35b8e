"""The benchmark of SupSup runs the published algorithm and ours on one state."""

from __future__ import annotations

import pytest

from benchmarks.subnetworks import Case, measure
from hypermask_fast.networks import MLP


@pytest.mark.parametrize("options", [{"density": 0.3}, {"rule": "threshold"}], ids=str)
def test_both_give_one_loss_and_one_task(options: dict[str, object]) -> None:
    case = Case("tiny", lambda: MLP(12, (16, 8), 4, bias=False), (6, 12), options)
    rows = measure(case, 3, 0.01)
    assert [name for name, *_ in rows] == ["tiny: step", "tiny: task of 3"]
    assert all(published > 0 and ours > 0 for _, published, ours in rows)
