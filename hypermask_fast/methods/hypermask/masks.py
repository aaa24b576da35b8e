"""Masks of a converted network: its masked weights, and its outputs where layers form masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hypermask_fast.backends.choice import note, resolve
from hypermask_fast.conversion import rows
from hypermask_fast.conversion.network import ConvertedNetwork
from hypermask_fast.layers import tasks
from hypermask_fast.layers.tasks import TaskMasks
from hypermask_fast.masks.thresholds import task_thresholds
from hypermask_fast.masks.types import Mask, MaskedTensors, MaskRequest
from hypermask_fast.masks.weights import mask_weights
from hypermask_fast.modes import is_followed

_ENTRIES_AT_ONCE = 2**26
"""Mask logits that are formed for several tasks together: 256 MiB of float32."""


def masked_weights(
    network: ConvertedNetwork,
    logits: Tensor,
    sparsity: float | Tensor,
    previous: Tensor | None = None,
    *,
    masked_drift: bool = True,
) -> tuple[dict[str, Tensor], MaskedTensors]:
    """Return what stands in for each of a network's tensors, by name, with masks and L1 drift.

    The exempt bias comes back unmasked; its mask is ``|tanh z|`` without a threshold.

    Args:
        network: The network.
        logits, sparsity, previous, masked_drift: As in
            :class:`hypermask_fast.masks.types.MaskRequest`.
    """
    tensors = network.tensors
    masked = [entry.masked for entry in tensors]
    request = MaskRequest(network.weights(), logits, sparsity, masked, previous, masked_drift)
    result = mask_weights(request)
    return dict(zip([e.name for e in tensors], result.products, strict=True)), result


def outputs_at_once(
    network: ConvertedNetwork,
    logits_of: Callable[[Sequence[int]], Tensor],
    x: Tensor,
    ids: Sequence[int],
    task_of_row: Tensor | None = None,
    *,
    sparsity: float,
    dropout: bool,
) -> Tensor | None:
    """Return outputs whose masks the layers form themselves, for several tasks in one forward.

    So it is done without gradients, through a chain of linear layers that treats the rows of a
    batch alone, where the kernels were measured to be faster, or are forced.

    Args:
        network: The network.
        logits_of: Gives the mask logits (k, N) of k tasks.
        x: Inputs (batch, ...).
        ids: Of T tasks.
        task_of_row: (batch,) int64, each row's place in ``ids``. Default: every row runs under
            every task.
        sparsity: Percent.
        dropout: As in :meth:`ConvertedNetwork.applied`.

    Returns:
        (batch, outputs), or (T * batch, outputs), those of the first task first. None where the
        tasks are to be run one by one with masks multiplied outside of the layers.
    """
    together = max(1, _ENTRIES_AT_ONCE // network.size)
    if task_of_row is not None and len(ids) > together:
        return None
    layers = _fused_layers(network, x, -(-len(x) // (1 if task_of_row is None else len(ids))))
    if not layers:
        return None
    outputs = []
    for first in range(0, len(ids), together):
        logits = logits_of(ids[first : first + together])
        masks = _layer_masks(network, layers, logits, sparsity, len(x), task_of_row)
        with network.running(masks, dropout=dropout) as net:
            outputs.append(net(x))
    return torch.cat(outputs)


def _fused_layers(network: ConvertedNetwork, x: Tensor, count: int) -> Sequence[str]:
    """Return the layers that are to form their masks, in the order that they run; none: no layer.

    Args:
        network: The network.
        x: Its inputs.
        count: Rows of each task.
    """
    usable = x.dim() > 1 and len(x) > 0 and x.is_floating_point() and not network.copied
    if not usable or torch.is_grad_enabled() or is_followed():
        return ()

    def faster() -> bool:
        weights = [w for w in network.weights() if w.dim() == 2]
        if not tasks.are_faster(weights, count, x.dtype, x.device):
            return False
        return bool(rows.chain(network.net).layers)

    if resolve("masked_linear", x, None, faster) != "triton":
        return ()
    layers, why_not = rows.chain(network.net)
    masked = {entry.name for entry in network.tensors if entry.masked}
    unmasked = [name for name in layers if f"{name}.weight" not in masked]
    if unmasked:
        layers, why_not = (), f"the weights of {unmasked[0]} have no mask"
    if why_not:
        note(f"masked_linear: masks are multiplied outside of the layers, for {why_not}")
    return layers


def _layer_masks(
    network: ConvertedNetwork,
    layers: Sequence[str],
    logits: Tensor,
    sparsity: float,
    batch: int,
    task_of_row: Tensor | None,
) -> Mapping[str, Mask | TaskMasks]:
    """Return what makes layers form their masks of one task, or of several, by their names."""
    tensors, count = network.tensors, len(logits)
    masked = [entry.masked for entry in tensors]
    thresholds = task_thresholds(logits, [entry.size for entry in tensors], sparsity, masked)
    place = {entry.name: i for i, entry in enumerate(tensors) if entry.masked}

    def of(name: str) -> tuple[Tensor | None, Tensor | None]:
        if name not in place:
            return None, None
        entry = tensors[place[name]]
        z = logits[:, entry.offset : entry.offset + entry.size].unflatten(1, entry.shape)
        return z, None if thresholds is None else thresholds[:, place[name]]

    found: dict[str, Mask | TaskMasks] = {}
    for name in layers:
        (z, q), (bias_z, bias_q) = of(f"{name}.weight"), of(f"{name}.bias")
        assert z is not None
        mask = Mask(z, bias_z, q, bias_q)
        if count == 1:
            found[name] = Mask(z[0], *(None if t is None else t[0] for t in mask[1:]))
            continue
        found[name] = TaskMasks(mask, task_of_row)
        if task_of_row is None:
            # The first layer puts out a batch for each task: to the others they are rows.
            task_of_row = torch.arange(count, device=logits.device).repeat_interleave(batch)
    return found
