"""Imports torchvision, also where a CPU build of torch meets a CUDA build of torchvision."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_declared: list[torch.library.Library] = []


def _declare_missing_ops() -> None:
    # torchvision registers fakes for these two without checking that its C++ library was loaded.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms", "qnms"):
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def import_torchvision() -> ModuleType:
    """Return the module ``torchvision``.

    The wheels of torchvision are linked against CUDA: beside a CPU build of torch their C++ library
    fails to load and the import stops at an operator that does not exist. The operators are then
    declared and the import is tried again; data sets, transforms and models work, the operators
    themselves still raise when called.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: torchvision is installed and fails to import for another reason.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _declared:
            raise
        _declare_missing_ops()
    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]
    return importlib.import_module("torchvision")
