"""What a network puts out: tensors, or tuples and dicts of them; and losses of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from hypermask_fast.errors import shown

Criterion: TypeAlias = "Callable[[Any, Any], Tensor]"
"""Takes a network's outputs and the targets, and returns a loss, 0-d."""


def _together(parts: Sequence[Any], join: Callable[[list[Tensor]], Tensor], what: str) -> Any:
    flat = [tree_flatten(part) for part in parts]
    spec = flat[0][1]
    if any(other != spec for _, other in flat):
        raise ValueError(f"{what} have different structures; give one task at a time")
    found: list[Any] = []
    for leaves in zip(*(leaves for leaves, _ in flat), strict=True):
        if all(isinstance(leaf, Tensor) for leaf in leaves):
            if not all(leaf.dim() for leaf in leaves):
                raise ValueError(
                    f"{what} have a tensor of shape (), which has no rows; give one task at a time"
                )
            found.append(join(list(leaves)))
        elif all(leaf is leaves[0] or leaf == leaves[0] for leaf in leaves):
            found.append(leaves[0])
        else:
            raise ValueError(f"{what} differ in {shown(leaves[0])}; give one task at a time")
    return tree_unflatten(found, spec)


def cat(parts: Sequence[Any], what: str = "outputs of parts of a batch") -> Any:
    """Return outputs of parts of a batch as those of the whole.

    Raises:
        ValueError: They have tensors without rows, or different structures.
    """
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat(list(parts))
    return _together(parts, torch.cat, what)


def stack(parts: Sequence[Any]) -> Any:
    """Return outputs of several tasks with a first dimension of the tasks; as :func:`cat`."""
    if all(isinstance(part, Tensor) for part in parts):
        return torch.stack(list(parts))
    return _together(parts, torch.stack, "outputs of several tasks")


def take(outputs: Any, rows: Tensor) -> Any:
    """Return rows of outputs."""
    return tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, outputs)


def detached(outputs: Any) -> Any:
    """Return outputs without their graph."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)


def check_criterion(criterion: object) -> None:
    """Raise TypeError where a criterion cannot be called."""
    if criterion is not None and not callable(criterion):
        raise TypeError(
            f"criterion is {shown(criterion)}; give a function of outputs and targets, such as "
            "torch.nn.MSELoss(), or None for the cross-entropy"
        )


def loss_of(criterion: Criterion, outputs: Any, targets: Any) -> Tensor:
    """Return the loss of a batch, 0-d.

    Raises:
        TypeError: The criterion returns no tensor.
        ValueError: It returns one that is not 0-d.
    """
    loss = criterion(outputs, targets)
    wanted = "make the criterion return a 0-d tensor, such as a mean"
    if not isinstance(loss, Tensor):
        raise TypeError(f"the criterion returned {shown(loss)}; {wanted}")
    if loss.dim() or not loss.is_floating_point():
        raise ValueError(
            f"the criterion returned {loss.dtype} of shape {tuple(loss.shape)}; {wanted}"
        )
    return loss
