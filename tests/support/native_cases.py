"""What tests of the native library share: a fake compiler's type, and a first use of the passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hypermask_fast.head import passes
from hypermask_fast.head.types import Head
from hypermask_fast.native import library as native

Compiler = Callable[..., Path]


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_loaded", None)


def libraries(folder: Path) -> list[Path]:
    return list(folder.glob("*.so"))


def small_logits() -> torch.Tensor:
    return passes.logits(Head(torch.eye(3), torch.ones(3)), torch.tensor([[1.0, 2.0, 3.0]]))
