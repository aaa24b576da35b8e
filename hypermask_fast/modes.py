"""What follows PyTorch's operators: native code and launches of kernels would go past it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

_NO_DISPATCH = torch._C._disabled_torch_dispatch_impl
# Looked up once: a step asks several times.
_compiling = torch.compiler.is_compiling
_transform = torch._C._functorch.peek_interpreter_stack
_modes = torch._C._len_torch_dispatch_stack
_has_storage = torch._C._has_storage
_tracing = torch._C._get_tracing_state


def is_transformed() -> bool:
    """Return whether ``torch.func`` or forward-mode differentiation transforms what runs.

    They know PyTorch's own operators, and no ``torch.autograd.Function``. False in compiled code.
    """
    return not _compiling() and (forward_ad._current_level >= 0 or _transform() is not None)


def is_followed() -> bool:
    """Return whether something sees PyTorch's operators only.

    That is ``torch.compile``, ``torch.export``, ``torch.jit.trace``, an active
    ``TorchDispatchMode`` (``FakeTensorMode``, ``make_fx``, ``FlopCounterMode``), and what
    :func:`is_transformed` tells of.
    """
    return (
        _compiling()
        or forward_ad._current_level >= 0
        or _transform() is not None
        or _modes() > 0
        or _tracing() is not None
    )


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is its memory: no subclass with a dispatch, no wrapper, no batch."""
    return type(tensor).__torch_dispatch__ is _NO_DISPATCH and _has_storage(tensor)


def has_values(tensor: Tensor) -> bool:
    """Return whether a tensor on the CPU holds numbers that Python may read now."""
    return tensor.is_cpu and not is_followed() and is_plain(tensor)


def needs_operators(*grads: Tensor | None) -> bool:
    """Return whether a backward pass must be PyTorch's operators, which can be differentiated.

    So it is with ``create_graph=True``, where :func:`is_transformed`, and for batches of gradients
    (``is_grads_batched=True``). False in compiled code.

    Args:
        *grads: Those of the outputs.
    """
    if _compiling():
        return False
    if torch.is_grad_enabled() or is_transformed():
        return True
    return not all(grad is None or is_plain(grad) for grad in grads)


def gradients_by_operators(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of a function by PyTorch's operators, which can be differentiated again.

    Args:
        function: Of the inputs; made of differentiable operators.
        inputs: What an autograd function saved of its inputs.
        grads: Those of the function's outputs, None for zero.

    Returns:
        A gradient for each input; None where it needs none or has none.
    """
    with torch.enable_grad():
        outputs = function(*inputs)
    needed = [i for i, t in enumerate(inputs) if t is not None and t.requires_grad]
    reached = [
        (output, grad)
        for output, grad in zip(outputs, grads, strict=True)
        if grad is not None and output.requires_grad
    ]
    result: list[Tensor | None] = [None] * len(inputs)
    if needed and reached:
        found = torch.autograd.grad(
            [output for output, _ in reached],
            [inputs[i] for i in needed],  # type: ignore[arg-type]
            [grad for _, grad in reached],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
        for i, value in zip(needed, found, strict=True):
            result[i] = value
    return tuple(result)
