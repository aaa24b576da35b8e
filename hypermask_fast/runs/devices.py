"""The device that a run's settings name."""

from __future__ import annotations

import torch

from hypermask_fast.errors import ConfigError

_OTHERS = ("mps", "xpu")


def _present() -> list[str]:
    """Return the names of the devices that there are."""
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return found + [kind for kind in _OTHERS if getattr(torch, kind).is_available()]


def device_named(name: str) -> torch.device:
    """Return a device by its name in the settings; "auto": CUDA's first one where there is one.

    Raises:
        ConfigError: There is none of the name, or it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    present = _present()
    count = sum(device.partition(":")[0] == kind for device in present)
    if count == 0 or (kind == "cuda" and index and int(index) >= count):
        why = (
            f"PyTorch {torch.__version__} finds no {kind} device here"
            if count == 0
            else f"there {'is 1' if count == 1 else f'are {count}'}, which are counted from 0"
        )
        raise ConfigError(f"device={name!r}: {why}; give one of auto, {', '.join(present)}")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device={name!r} cannot be used ({reason}); give one of auto, {', '.join(present)}"
        ) from error
