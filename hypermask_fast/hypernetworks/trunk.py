"""A hypernetwork's trunk by kernels: rows of the table of embeddings, and all layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypermask_fast.backends.choice import uses_kernels
from hypermask_fast.modes import is_plain, needs_operators

_NAMES: dict[type[nn.Module], str] = {nn.ELU: "elu", nn.ReLU: "relu", nn.Tanh: "tanh"}
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "tanh": torch.tanh,
}
_MOST = 2**22
"""Multiply-adds of a layer: of more, products that share what they read are faster."""


def _on_gpu(table: Tensor) -> bool:
    return table.is_cuda and uses_kernels("trunk", table)


def _hooked(module: nn.Module) -> bool:
    of_runs = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in of_runs)


def _is_layer(linear: nn.Module, function: nn.Module, most: int) -> bool:
    if type(linear) is not nn.Linear or type(function) not in _NAMES:
        return False
    assert isinstance(linear, nn.Linear)
    if linear.weight.numel() > most:
        return False
    if isinstance(function, nn.ELU) and function.alpha != 1:
        return False
    parameters = (linear.weight, linear.bias)
    return all(
        p is not None and p.dtype == torch.float32 and p.is_contiguous() and is_plain(p)
        for p in parameters
    )


def takes(trunk: nn.Module, table: Tensor, ids: object) -> bool:
    """Return whether the kernels are to run a trunk on some rows of a table.

    Args:
        trunk: The trunk.
        table: The embeddings.
        ids: The rows; what is no tensor of them is refused elsewhere.
    """
    if type(trunk) is not nn.Sequential or not len(trunk) or len(trunk) % 2 or not _on_gpu(table):
        return False
    if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.device != table.device:
        return False
    if not len(ids):
        return False
    layers = list(trunk)
    if any(map(_hooked, (trunk, *layers))) or not table.is_contiguous():
        return False
    pairs = zip(layers[::2], layers[1::2], strict=True)
    return all(_is_layer(linear, function, _MOST // len(ids)) for linear, function in pairs)


def hidden(trunk: nn.Sequential, table: Tensor, ids: Tensor) -> Tensor:
    """Return ``trunk(table[ids])``, (k, H), where the kernels :func:`takes` it.

    Args:
        trunk: Linear layers with an activation each.
        table: The embeddings (capacity, D).
        ids: (k,), rows of it.
    """
    names = tuple(_NAMES[type(module)] for module in list(trunk)[1::2])
    hidden: Tensor = _Trunk.apply(ids.contiguous(), names, table, *trunk.parameters())
    return hidden


def _plain(ids: Tensor, names: Sequence[str], table: Tensor, *parameters: Tensor) -> Tensor:
    x = table.index_select(0, ids)
    for name, weight, bias in zip(names, parameters[::2], parameters[1::2], strict=True):
        x = _FUNCTIONS[name](F.linear(x, weight, bias))
    return x


class _Trunk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, names: tuple[str, ...], table: Tensor, *parameters: Tensor
    ) -> Tensor:
        from hypermask_fast.kernels.hypernetworks.trunk import forward

        outputs: list[Tensor] = []
        for number, name in enumerate(names):
            x, rows = (outputs[-1], None) if outputs else (table, ids)
            weight, bias = parameters[2 * number : 2 * number + 2]
            outputs.append(forward(x, rows, weight, bias, name))
        ctx.names = names
        ctx.save_for_backward(ids, table, *parameters, *outputs)
        return outputs[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from hypermask_fast.kernels.hypernetworks.trunk import backward

        names, count = ctx.names, 2 * len(ctx.names)
        ids, table, *rest = ctx.saved_tensors
        parameters, outputs = rest[:count], rest[count:]
        (grad,) = grads
        if needs_operators(grad):
            return None, None, *_gradients(ids, names, (table, *parameters), grad)
        found: list[Tensor | None] = []
        for number in reversed(range(len(names))):
            x, rows = (outputs[number - 1], None) if number else (table, ids)
            wanted = bool(number or ctx.needs_input_grad[2])
            made = (parameters[2 * number], outputs[number], grad.contiguous())
            of_x, *of_layer = backward(x, rows, *made, names[number], wanted)
            found = [*of_layer, *found]
            if number:
                assert of_x is not None
                grad = of_x
        return None, None, of_x, *found


def _gradients(
    ids: Tensor, names: Sequence[str], inputs: Sequence[Tensor], grad: Tensor
) -> list[Tensor | None]:
    """Return gradients that can be differentiated."""
    with torch.enable_grad():
        y = _plain(ids, names, *inputs)
        needed = [x for x in inputs if x.requires_grad]
        found = iter(torch.autograd.grad(y, needed, grad, create_graph=True))
    return [next(found) if x.requires_grad else None for x in inputs]
