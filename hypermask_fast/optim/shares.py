"""The updates of an optimizer's groups that are no factors': all their steps counted at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from hypermask_fast.optim.cuda import step_table
from hypermask_fast.optim.dense import count, fuses_on_device, step_dense
from hypermask_fast.optim.in_backward import Verdict


class Share(NamedTuple):
    """Parameters of a group that have a gradient.

    Attributes:
        group: The group.
        dense: Those that PyTorch's Adam steps.
        tables: Those that a kernel steps.
    """

    group: dict[str, Any]
    dense: list[Tensor]
    tables: list[Tensor]


def step_shares(
    shares: Sequence[Share],
    state_of: Callable[[Tensor], dict[str, Tensor]],
    verdict: Verdict | None,
) -> None:
    """Update parameters.

    Args:
        shares: Of each group.
        state_of: Gives the state of a parameter.
        verdict: Whether the step is taken. Default: it is.
    """
    counted: list[tuple[Tensor, dict[str, Tensor]]] = []
    for group, dense, tables in shares:
        fused = dense if fuses_on_device(dense, group) else []
        counted += [(p, state_of(p)) for p in (*fused, *tables)]
    count(counted, verdict)
    done = {id(p) for p, _ in counted}
    for group, dense, tables in shares:
        if dense:
            states = [state_of(p) for p in dense]
            step_dense(dense, states, group, verdict, counted=id(dense[0]) in done)
        for table in tables:
            step_table(table, state_of(table), group, verdict)
