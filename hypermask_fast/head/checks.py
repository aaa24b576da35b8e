"""What the passes over a head ask of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError, shown
from hypermask_fast.head.types import FrozenHead, KeptChunks, KeptSample, Moments


def check(
    name: str,
    tensor: Tensor,
    shape: tuple[int | str, ...],
    like: Tensor,
    dtype: torch.dtype | None = None,
) -> None:
    """Check against ``like``'s device and dtype, and ``shape``, where a name fits any size."""
    sizes, dtype = tuple(tensor.shape), dtype or like.dtype
    if len(sizes) != len(shape) or any(
        isinstance(want, int) and want != size for size, want in zip(sizes, shape, strict=True)
    ):
        raise ValueError(f"{name} has shape {sizes}; expected ({', '.join(map(str, shape))})")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}; move it to A's {like.device}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}; convert it to {dtype}")


def check_contiguous(name: str, tensor: Tensor) -> None:
    """Check that a tensor which is too large to copy has no strides."""
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} has strides {tensor.stride()} for shape {tuple(tensor.shape)}; "
            f"pass a contiguous tensor, made once outside the loop"
        )


def check_weight(weight: Tensor) -> tuple[int, int]:
    """Check A and return N and H."""
    if weight.dim() != 2 or not weight.shape[1]:
        raise ValueError(f"A has shape {tuple(weight.shape)}; expected (N, H) with H of at least 1")
    if weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"A is {weight.dtype}; convert it to float32 or float64")
    check_contiguous("A", weight)
    return weight.shape[0], weight.shape[1]


def check_moments(prefix: str, moments: Moments, like: Tensor, dtype: torch.dtype) -> None:
    """Check Adam's moments of ``like``."""
    if dtype not in (like.dtype, torch.bfloat16):
        raise TypeError(f"exp_avg is {dtype}; expected A's {like.dtype} or bfloat16")
    for name, moment in moments._asdict().items():
        check(prefix + name, moment, tuple(like.shape), like, dtype)
        check_contiguous(prefix + name, moment)


def check_kept(kept: Tensor, count: int, like: Tensor) -> None:
    """Check the logits to keep of ``count`` embeddings."""
    narrow = kept.dtype == torch.bfloat16
    check("kept", kept, (count, len(like)), like, kept.dtype if narrow else None)
    check_contiguous("kept", kept)


def check_chunks(kept: KeptChunks, count: int, like: Tensor) -> None:
    """Check the logits to keep of ``count`` embeddings, a chunk of a task each."""
    narrow = kept.logits.dtype == torch.bfloat16
    check("kept", kept.logits, ("t", "M"), like, kept.logits.dtype if narrow else None)
    check_contiguous("kept", kept.logits)
    tasks, size = kept.logits.shape
    if tasks * kept.chunks != count or -(-size // len(like)) != kept.chunks:
        raise ValueError(
            f"kept has shape {(tasks, size)} in {kept.chunks} chunks of {len(like)} for {count} "
            "embeddings; give a row for each task, and an embedding for each chunk of it"
        )


def check_sample(sample: KeptSample, count: int, like: Tensor) -> None:
    """Check a batch of which ``count`` embeddings are computed, but not the logits to keep."""
    check("the batch", sample.hidden, ("m", like.shape[1]), like)
    check("rows of the batch", sample.rows, (count,), like, torch.int64)


def check_frozen(frozen: FrozenHead, count: int, like: Tensor) -> None:
    """Check a frozen head for ``count`` embeddings."""
    width = like.shape[1]
    check("frozen weight", frozen.weight, tuple(like.shape), like)
    check("frozen bias", frozen.bias, (len(like),), like)
    check("frozen hidden", frozen.hidden, (count, width), like)
    check("frozen gram", frozen.gram, (width, width), like, torch.float64)


def check_adam_options(options: Mapping[str, Any]) -> None:
    """Raise ConfigError where an option of Adam has another type."""
    for name in ("lr", "eps", "weight_decay"):
        value = options[name]
        is_tensor = name == "lr" and isinstance(value, Tensor)
        if not is_tensor and (isinstance(value, bool) or not isinstance(value, Real)):
            raise ConfigError(
                f"{name} is {shown(value)}, a {type(value).__name__}; give a number that is not "
                "negative"
            )
    betas = options["betas"]
    if not isinstance(betas, tuple | list):
        raise ConfigError(f"betas are {shown(betas)}; give two numbers in [0, 1), a tuple")
    flags = ("maximize", "capturable", "decoupled_weight_decay", "row_sparse", "step_in_backward")
    for name in flags:
        if not isinstance(options[name], bool):
            raise ConfigError(f"{name} is {shown(options[name])}; give True or False")
