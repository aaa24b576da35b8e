"""The machine and the versions that a run is made with, for its manifest."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import numpy as np
import torch

from hypermask_fast.records.environment import processor, version

_resource: Any
try:
    import resource as _resource
except ImportError:  # on Windows
    _resource = None

_SECRET = ("key", "token", "password", "secret")


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the most bytes that this process has taken so far, of "host" and "device" memory."""
    found = {}
    if _resource is not None:
        most = _resource.getrusage(_resource.RUSAGE_SELF).ru_maxrss
        found["host"] = int(most) * (1 if sys.platform == "darwin" else 1024)
    if device.type == "cuda":
        found["device"] = int(torch.cuda.max_memory_allocated(device))
    return found


def command() -> list[str]:
    """Return the words that this process was started with; none after one that names a secret."""
    words = ["hypermask" if sys.argv[0].endswith("__main__.py") else os.path.basename(sys.argv[0])]
    for word in sys.argv[1:]:
        is_secret = any(name in word.lower() for name in _SECRET)
        words.append(f"{word.partition('=')[0]}=..." if is_secret and "=" in word else word)
    return words


def machine(device: torch.device) -> dict[str, Any]:
    """Return versions, host, processors, threads and the command, for JSON.

    Args:
        device: That of the run.
    """
    package = sys.modules[__name__.partition(".")[0]]
    found: dict[str, Any] = {
        "versions": {
            "hypermask_fast": package.__version__,
            "torch": torch.__version__,
            "triton": version("triton"),
            "numpy": np.__version__,
            "python": platform.python_version(),
            **({"cuda": torch.version.cuda} if torch.version.cuda else {}),
        },
        "host": platform.node(),
        "system": platform.platform(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "command": command(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["gpu_bytes"] = properties.total_memory
    return found
