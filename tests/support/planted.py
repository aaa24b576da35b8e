"""Faults planted in kernels: wrong results, ones that cannot be compiled, ones that change."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hypermask_fast import kernels
from hypermask_fast.kernels.head import logits
from hypermask_fast.kernels.selfcheck import run
from hypermask_fast.kernels.selfcheck.case import Draw
from tests.support.graph_stand_ins import without_numbers

KIND = type(logits._mask_logits_vector_kernel)
"""Of every kernel: compiled or interpreted."""


def tensors_of(arguments: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


def make_wrong(tensor: Tensor, before: Tensor) -> None:
    """Change what a kernel wrote to a tensor: floats by a hundredth, integers by their last bit."""
    if tensor.is_floating_point():
        wrong = tensor.double() * 1.01 + 0.01
        same = (tensor == before) | (tensor.isnan() & before.isnan())
        tensor.copy_(torch.where(same, tensor.double(), wrong))
    elif tensor.dtype == torch.bool:
        tensor.copy_(torch.where(tensor == before, tensor, ~tensor))
    else:
        tensor.copy_(torch.where(tensor == before, tensor, tensor ^ 1))


def plant(patch: pytest.MonkeyPatch, name: str, kind: str) -> list[str]:
    """Plant a fault in the kernel of a name; return where each of its launches is noted.

    Args:
        patch: Takes it back.
        name: Of the kernel's function.
        kind: "wrong", "compile", "changing", which is wrong from the third launch on, or "right".
    """
    real, launches = KIND.run, []

    def faulty(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        if kernel.__name__ != name:
            return real(kernel, *args, **kwargs)
        launches.append(name)
        if kind == "compile":
            raise ValueError(f"planted in {name}")
        tensors = tensors_of((args, kwargs))
        before = [tensor.clone() for tensor in tensors]
        result = real(kernel, *args, **kwargs)
        if kind == "wrong" or (kind == "changing" and len(launches) > 2):
            for tensor, old in zip(tensors, before, strict=True):
                make_wrong(tensor, old)
        return result

    patch.setattr(KIND, "run", faulty)
    return launches


def choose_matrix_cores(patch: pytest.MonkeyPatch, has_wgmma: bool) -> None:
    """Choose kernels as for a GPU whose matrix cores read shared memory, or as for another one.

    Launchers ask ``has_wgmma`` of a tensor, which says so of one that is on no GPU.
    """
    prefix = f"{kernels.__name__}."
    # Who imports it while it is replaced would keep that.
    for found in pkgutil.walk_packages(kernels.__path__, prefix):
        module = importlib.import_module(found.name)
        if hasattr(module, "has_wgmma"):
            patch.setattr(module, "has_wgmma", lambda tensor: has_wgmma)


def launched_by(name: str, has_wgmma: bool) -> set[str]:
    """Return the kernels that a check's cases launch; nothing runs.

    Args:
        name: Of the check.
        has_wgmma: As in :func:`choose_matrix_cores`.
    """
    seen: set[str] = set()

    def note(kernel: Any, *args: Any, **kwargs: Any) -> None:
        seen.add(kernel.__name__)

    with pytest.MonkeyPatch.context() as patch:
        choose_matrix_cores(patch, has_wgmma)
        patch.setattr(KIND, "run", note)
        for make in run.KERNELS[name]:
            make(Draw(torch.device("cpu"))).launch()
    return seen


def repeated(
    device: torch.device, launch: Callable[[], Sequence[Tensor]]
) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """Stand in for a CUDA graph: a replay is another launch."""
    with without_numbers():
        results = launch()

    def replay() -> None:
        for result, new in zip(results, launch(), strict=True):
            result.copy_(new)

    return replay, results
