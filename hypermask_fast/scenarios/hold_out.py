"""Holds training examples out for validation."""

from __future__ import annotations

import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError
from hypermask_fast.scenarios.sources import Split


def _take(split: Split, chosen: Tensor) -> Split:
    return Split(split.source, split.index[chosen], split.labels[chosen])


def _shares(counts: Tensor, total: int) -> Tensor:
    """Return ``total`` in proportion to ``counts``, in whole numbers by the largest remainders."""
    exact = counts.double() * total / counts.sum()
    shares = exact.long()
    missing = total - int(shares.sum())
    shares[(shares - exact).argsort(stable=True)[:missing]] += 1
    return shares


def hold_out(
    split: Split, validation: int, per_class: bool, stratified: bool, task: str
) -> tuple[Split, Split]:
    """Return (the rest, the first ``validation`` examples, of each class or in all).

    Args:
        split: The training examples.
        validation: How many are held out.
        per_class: So many of each class.
        stratified: Else of each class its share.
        task: Whose they are, for messages.

    Raises:
        ConfigError: There are not so many.
    """
    counts = split.labels.bincount().cpu()
    available = int(counts[counts > 0].min() if per_class and len(split) else counts.sum())
    if validation and not 0 < validation < available:
        raise ConfigError(
            f"validation is {validation}; it must be 0 to {max(available - 1, 0)}, for {task} has "
            f"{available} training examples{' of a class' if per_class else ''}"
        )
    held = torch.zeros(len(split), dtype=torch.bool, device=split.device)
    if per_class or stratified:
        shares = [validation] * len(counts) if per_class else _shares(counts, validation).tolist()
        for label, share in enumerate(shares):
            held[torch.nonzero(split.labels == label).flatten()[:share]] = True
    else:
        held[:validation] = True
    return _take(split, ~held), _take(split, held)
