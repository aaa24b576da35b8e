"""The choice between the kernels and the reference."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.backends import proof
from hypermask_fast.errors import ConfigError, nearest, shown
from hypermask_fast.modes import is_followed, is_plain, is_transformed

BACKENDS = ("auto", "triton", "reference")
_VARIABLE = "HYPERMASK_FAST_BACKEND"
HAS_TRITON = importlib.util.find_spec("triton") is not None
_FLOAT32 = (torch.float32,)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_KERNELS = {
    "head": _FLOAT32,
    "step_ahead": _FLOAT32,
    "mask_threshold": _FLOAT32,
    "mask_weights": _FLOAT32,
    "masked_linear": _FLOATS,
    "masked_conv2d": _FLOATS,
    "top_k": _FLOAT32,
    "pack": (torch.bool,),
    "batch": (torch.uint8,),
    "adam_table": _FLOAT32,
    "trunk": _FLOAT32,
    "total": _FLOAT32,
}
"""What dtypes the kernels take: of the head, the logits, the scores, or the layers' inputs."""
_LAUNCHED = ("head", "step_ahead", "top_k", "pack", "batch", "adam_table", "trunk", "total")
"""Those that are launched; the other kernels are operators, which a trace sees."""


class _Chosen(threading.local):
    # Dynamo ends the graph at a ContextVar, and guards no default of a thread-local class.
    def __init__(self) -> None:
        self.name: str | None = None
        self.notes: list[str] | None = None


_chosen = _Chosen()


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ConfigError(
            f"{source} is {shown(name)}{nearest(name, BACKENDS)}; choose one of "
            f"{', '.join(BACKENDS)}"
        )
    return name


def requested(name: str | None = None) -> str:
    """Return the backend asked for: the argument, else the context's, else the environment's.

    Raises:
        ConfigError: The name is unknown.
    """
    if name is not None:
        return _checked(name, "backend")
    if _chosen.name is not None:
        return _chosen.name
    return _checked(os.environ.get(_VARIABLE) or "auto", _VARIABLE)


def _why_no_kernel(op: str, tensor: Tensor) -> str | None:
    """Return why the kernel of ``op`` cannot run on this tensor; None where it can."""
    if op not in _KERNELS:
        return f"there is no kernel for {op}"
    if tensor.device.type != "cuda":
        return f"the kernel of {op} runs on CUDA tensors and this one is on {tensor.device}"
    if tensor.dtype not in _KERNELS[op]:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in _KERNELS[op])
        return f"the kernel of {op} takes {names}, not {tensor.dtype}"
    if not HAS_TRITON:
        return "triton is not installed"
    if is_followed() or not is_plain(tensor) if op in _LAUNCHED else is_transformed():
        return f"what traces or transforms PyTorch's operators here cannot see the kernel of {op}"
    return None


def _cannot_look_up() -> bool:
    """Whether this is compiled code: what was measured is in a file, and holds for eager code."""
    return torch.compiler.is_compiling()


def _was_slower(op: str, tensor: Tensor, sizes: dict[str, int]) -> bool:
    if not sizes or _cannot_look_up():
        return False
    from hypermask_fast.kernels import tuning

    return tuning.was_slower(op, tensor.device, **sizes)


def _unless_forced(op: str, wanted: str, why: str | None) -> bool:
    """Return whether nothing speaks against a kernel; raise where one was forced that cannot."""
    if why is not None and wanted == "triton":
        raise ConfigError(f"backend 'triton' cannot run here: {why}; use 'auto' or 'reference'")
    if why is not None:
        note(f"{op}: no kernel, for {why}")
    return why is None


def may_run(op: str, tensor: Tensor, wanted: str = "auto") -> bool:
    """Return whether a kernel could run ``op`` on a tensor, which is not known to be right.

    Args:
        op: Name of the operation.
        tensor: Its input.
        wanted: The backend asked for.

    Raises:
        ConfigError: "triton" was forced and cannot run.
    """
    if wanted == "reference":
        note(f"{op}: PyTorch, as backend 'reference' asks")
        return False
    return _unless_forced(op, wanted, _why_no_kernel(op, tensor))


def _is_proven(op: str, tensor: Tensor, wanted: str) -> bool:
    """Return whether a kernel that would run is known to be right on the tensor's device."""
    why = proof.why_left_out(op, tensor.device, forced=wanted == "triton")
    if not _unless_forced(op, wanted, why):
        return False
    note(f"{op}: Triton kernel")
    return True


def uses_kernels(op: str, tensor: Tensor, name: str | None = None, **sizes: int) -> bool:
    """Return whether a kernel is to run ``op``, wherever one can; a forced one that cannot raises.

    For operations whose kernel is the way to do them on CUDA, unless it was measured to be slower.
    Those that need to be measured first ask :func:`resolve`. The first use on a device checks the
    kernels there, and an operation of which one fails has none.

    Args:
        op: Name of the operation.
        tensor: Its input.
        name: The backend asked for, or None.
        **sizes: By which "auto" looks up what was measured. Default: it does not.

    Raises:
        ConfigError: The name is unknown, or "triton" was forced and cannot run.
        DeviceFaultError: The kernels were checked, and one ended the use of the device.
    """
    wanted = requested(name)
    if not may_run(op, tensor, wanted):
        return False
    # Looked up for a forced kernel too: so the tuner learns the sizes.
    if _was_slower(op, tensor, sizes) and wanted == "auto":
        note(f"{op}: no kernel, for it was measured to be slower than PyTorch here")
        return False
    return _is_proven(op, tensor, wanted)


def resolve(
    op: str, tensor: Tensor, name: str | None = None, faster: Callable[[], bool] = lambda: False
) -> str:
    """Return the backend that runs ``op`` on a tensor: "triton" or "reference".

    Args:
        op: Name of the operation.
        tensor: Its input.
        name: The backend asked for, or None.
        faster: With "auto", whether the kernel was measured to be faster; by default it was not.
            Not asked in compiled code.

    Raises:
        ConfigError: The name is unknown, or "triton" was forced and cannot run.
    """
    wanted = requested(name)
    if not may_run(op, tensor, wanted):
        return "reference"
    if wanted == "triton" or (not _cannot_look_up() and faster()):
        return "triton" if _is_proven(op, tensor, wanted) else "reference"
    note(f"{op}: not taken, as it was not measured to be faster than W * mask and PyTorch here")
    return "reference"


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the backend inside a ``with`` block, for this thread.

    A function of ``torch.compile`` is compiled again for it.

    Args:
        name: "auto" (the fastest that was measured), "triton" or "reference".

    Raises:
        ConfigError: The name is unknown.
    """
    before, _chosen.name = _chosen.name, _checked(name, "backend")
    try:
        yield
    finally:
        _chosen.name = before


def note(what: str) -> None:
    """Tell :func:`explain` of a choice."""
    if _chosen.notes is not None:
        _chosen.notes.append(what)


@torch.no_grad()
def explain(module: nn.Module, *args: Any, **kwargs: Any) -> str:
    """Run a module once without gradients, and tell what its masks and products ran on, and why.

    Args:
        module: A masked layer, a network with masks on, or a learner.
        *args, **kwargs: Of its forward.

    Returns:
        A line for each choice that was made, in order.

    Raises:
        TypeError: It is no module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module is {shown(module)}; give a masked layer, a network or a learner, an nn.Module"
        )
    before, _chosen.notes = _chosen.notes, []
    try:
        module(*args, **kwargs)
        return "\n".join(dict.fromkeys(_chosen.notes))
    finally:
        _chosen.notes = before
