"""Masked weights of all tensors of a network at once, and their L1 drift."""

from __future__ import annotations

from hypermask_fast.backends.choice import note
from hypermask_fast.masks import cpu, cuda, plain
from hypermask_fast.masks.checks import check_sparsity
from hypermask_fast.masks.types import MaskedTensors, MaskRequest


def mask_weights(request: MaskRequest) -> MaskedTensors:
    """Return the masked weights of a network and their L1 drift.

    On a CPU one native pass forms masks, percentiles, products and drift, and one pass their
    gradients; on CUDA a few kernels do. Elsewhere PyTorch does.

    Args:
        request: The weights and how they are masked.

    Raises:
        ValueError: The sparsity is a number outside [0, 100].
        ConfigError: Backend "triton" was forced and cannot run.
    """
    check_sparsity(request.sparsity)
    if cuda.runs(request):
        return cuda.mask_weights(request)
    if cpu.runs(request):
        note("mask_weights: native pass")
        return cpu.mask_weights(request)
    return plain.mask_weights(request)
