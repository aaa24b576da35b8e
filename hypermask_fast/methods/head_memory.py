"""Whether a hypernetwork fits in the memory there is, told before it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hypermask_fast.errors import ConfigError, warn_caller
from hypermask_fast.hypernetworks.full import Hypernetwork
from hypermask_fast.memory import available_memory
from hypermask_fast.methods.settings import MethodSettings
from hypermask_fast.modes import is_followed, is_plain

# Numbers that training takes for each of the head: itself, and Adam's moments of it.
_TRAINED = 3
# And for each output: logits, masks, their gradients, masked weights and the target's own state.
_A_STEP = 8


def require_fit(
    method: str,
    make: Callable[[int, Tensor], Hypernetwork],
    outputs: int,
    like: Tensor,
    settings: MethodSettings,
) -> None:
    """Raise ConfigError where a hypernetwork is larger than the memory that its device has left.

    Where it fits and Adam's moments of it do not, there is a warning. On the meta device, and
    under what only follows operators, everything fits.

    Args:
        method: Name of the learner, for errors.
        make: Returns the hypernetwork of so many outputs, of the device and dtype of a tensor.
        outputs: Entries of the target network.
        like: A tensor of the target network.
        settings: Of the method.
    """
    if like.is_meta or is_followed() or not is_plain(like):
        return
    made = make(outputs, like.detach().to("meta"))
    needed = sum(p.nbytes for p in made.parameters())
    available = available_memory(str(like.device))
    if available is None or _TRAINED * needed <= available:
        return
    head = made.head
    size = f"a head of {head.out_features:,} x {head.in_features}"
    if needed <= available:
        warn_caller(
            f"the hypernetwork of {method} takes {_mib(needed)} ({size}), with Adam's moments "
            f"{_mib(_TRAINED * needed)}, and {_mib(available)} of {like.device.type} memory are "
            f"available; what would train: {_fitting(made, outputs, available, settings)}"
        )
        return
    raise ConfigError(
        f"the hypernetwork of {method} needs {_mib(needed)} ({size}), with Adam's moments "
        f"{_mib(_TRAINED * needed)}, and {_mib(available)} of {like.device.type} memory are "
        f"available; what would fit: {_fitting(made, outputs, available, settings)}"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _fitting(made: Hypernetwork, outputs: int, available: int, settings: MethodSettings) -> str:
    """Return the changes of the settings that make a hypernetwork fit, with Adam's moments."""
    head, each = made.head, made.head.weight.itemsize
    left = available - _A_STEP * outputs * each
    width = left // (_TRAINED * each * head.out_features) - 1  # beside the bias
    narrowing = settings.narrowed(width) if 0 < width < head.in_features else None
    offered: list[dict[str, Any]] = [] if narrowing is None else [narrowing]
    values = settings.values()
    if values.get("head") == "full":
        try:
            settings.chosen("", settings, {"head": "chunked"})
        except ConfigError:
            pass  # it does not go together with the rest
        else:
            offered.append({"head": "chunked"})
    texts = [", ".join(f"{name}={value!r}" for name, value in each.items()) for each in offered]
    return " or ".join(texts) or "a smaller network"
