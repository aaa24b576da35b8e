"""The plain HyperInterval step that is timed computes what the package's step does."""

from __future__ import annotations

import pytest

from benchmarks.steps import hyperinterval


@pytest.mark.parametrize("name", ["tiny", "tiny-task"])
def test_both_steps_have_the_same_losses(name: str) -> None:
    ours, plain = hyperinterval.ours(name), hyperinterval.plain(name)
    for _ in range(4):
        a, b = ours().item(), plain().item()
        # Adam divides rounding by itself only where a gradient is 0, of units dead for the batch.
        assert abs(a - b) < 1e-3 * abs(b)
    assert set(hyperinterval.measure(name, 1)) == {"plain", "ours"}
