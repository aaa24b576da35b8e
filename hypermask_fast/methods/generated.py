"""What methods with a hypernetwork share: weights and records of a converted network's tensors."""

from __future__ import annotations

from torch import Tensor

from hypermask_fast.conversion.network import ConvertedNetwork
from hypermask_fast.hypernetworks.init import Fan
from hypermask_fast.layers.masked import MaskedLayer
from hypermask_fast.masks.types import MaskedTensors, MaskRequest
from hypermask_fast.masks.weights import mask_weights


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


def fans(network: ConvertedNetwork) -> list[Fan]:
    """Return what the hyperfan initialisation must know of each of a network's tensors."""
    found = []
    for entry, (module, key) in zip(network.tensors, network.owners, strict=True):
        assert isinstance(module, MaskedLayer)
        fan_in = module.weight[0].numel()
        found.append(Fan(entry.size, fan_in, key == "bias", module.bias is not None))
    return found
