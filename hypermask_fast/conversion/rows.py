"""Proof that a network is a chain of layers that treats the rows of a batch one by one.

Only what is known to do so is let through; of anything else nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import fx, nn

from hypermask_fast.layers.dropouts import TASK_DROPOUTS
from hypermask_fast.layers.masked import MaskedLinear
from hypermask_fast.layers.stand_ins import TaskLayer

_LINEAR = (MaskedLinear, nn.Linear)
_DROPOUTS = (*TASK_DROPOUTS, *TASK_DROPOUTS.values())
_ELEMENTWISE: tuple[type[nn.Module], ...] = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh),
    *(nn.Identity, nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.Sigmoid),
    *(nn.SiLU, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold),
)
_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    (
        *(F.celu, F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu),
        *(F.logsigmoid, F.mish, F.relu, F.relu6, F.selu, F.sigmoid, F.silu, F.softplus),
        *(F.softsign, F.tanh, torch.relu, torch.sigmoid, torch.tanh),
    )
)
_METHODS = frozenset(("contiguous", "relu", "sigmoid", "tanh"))
_Key = tuple[Hashable, ...]


class Chain(NamedTuple):
    """What is known of a network.

    Attributes:
        layers: Names of the masked layers in the order that they run, each once; empty where
            nothing is claimed.
        why_not: What is not known to treat rows alone; "" where all is.
    """

    layers: tuple[str, ...]
    why_not: str


_known: WeakKeyDictionary[nn.Module, tuple[_Key, Chain]] = WeakKeyDictionary()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, TaskLayer) or super().is_leaf_module(m, module_qualified_name)


def _is_patched(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or "forward" in vars(module)


def _key(net: nn.Module) -> _Key:
    """Return what a forward may depend on: modules, modes, and plain attributes."""
    return tuple(
        (
            *(name, id(m), type(m), _is_patched(m)),
            *((k, v) for k, v in vars(m).items() if isinstance(v, int | float | str | None)),
        )
        for name, m in net.named_modules()
    )


def chain(net: nn.Module) -> Chain:
    """Return the masked layers of a network that is a chain which treats the rows of a batch alone.

    The forward is traced once, and again where a module, a mode (training) or a plain attribute
    (number, string) of a module changed.

    Args:
        net: The network; it is not run.
    """
    key = _key(net)
    if net not in _known or _known[net][0] != key:
        _known[net] = (key, _traced(net))
    return _known[net][1]


def _traced(net: nn.Module) -> Chain:
    for name, module in net.named_modules():
        if _is_patched(module):
            where = name or "the network"
            return Chain((), f"{where} has hooks, or a forward replaced on the instance")
    try:
        graph = _Tracer().trace(net)
    except Exception as error:  # A forward may raise anything where it is given a stand-in.
        return Chain((), f"its forward cannot be traced ({error})")
    layers: list[str] = []
    before: fx.Node | None = None
    written = False
    for node in graph.nodes:
        if node.all_input_nodes != ([] if before is None else [before]):
            return Chain((), f"{node.name} does not read what {before} puts out, and that alone")
        if before is None or node.op == "output":
            wanted = "placeholder" if before is None else "output"
            if node.op != wanted or (before is not None and node.args != (before,)):
                return Chain((), f"{node.name} is not the one {wanted} of the network")
        elif not _keeps_rows(net, node):
            called = getattr(node.target, "__name__", node.target)
            return Chain((), f"{called} is not known to treat rows alone")
        if node.op == "call_module":
            module = net.get_submodule(node.target)
            written = written or (not layers and bool(getattr(module, "inplace", False)))
            if isinstance(module, MaskedLinear):
                layers.append(node.target)
        before = node
    if not layers or len(set(layers)) != len(layers):
        return Chain((), "no masked layer runs, or one runs more than once")
    if written:
        return Chain((), "the input is changed in place")
    return Chain(tuple(layers), "")


def _keeps_rows(net: nn.Module, node: fx.Node) -> bool:
    constants = (*node.args[1:], *node.kwargs.values())
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        if type(module) is nn.Flatten:
            return module.start_dim == 1
        if type(module) in _DROPOUTS:
            return not module.training
        return type(module) in (*_LINEAR, *_ELEMENTWISE) and not constants
    if node.target in (torch.flatten, "flatten"):
        return constants == (1,)
    known = node.target in (_FUNCTIONS if node.op == "call_function" else _METHODS)
    # True is the flag of an operation in place.
    return known and not any(value is True for value in constants)
