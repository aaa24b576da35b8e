"""Values as JSON can hold them, and the numbers that it cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def plain_json(value: Any, where: str, *, nonfinite_as_text: bool) -> Any:
    """Return ``value`` as dicts, lists, strings, bools, ints, floats and None only.

    Tuples become lists, numpy numbers become Python numbers.

    Args:
        value: What is to be stored.
        where: Name of ``value`` in error messages, such as ``"state"``.
        nonfinite_as_text: Store NaN and infinities as ``"nan"``, ``"inf"``, ``"-inf"``; otherwise
            they are refused.

    Raises:
        TypeError: A value or a key has a type that JSON would alter or cannot hold.
        ValueError: A number is not finite and ``nonfinite_as_text`` is false.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        if math.isfinite(number):
            return number
        if nonfinite_as_text:
            return str(number)
        raise ValueError(f"{where} is {number}, expected a finite number; store None instead")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"{where} has the key {key!r} of type {type(key).__name__}, expected str; "
                    "convert it, since JSON would turn it into text"
                )
        return {
            key: plain_json(item, f"{where}[{key!r}]", nonfinite_as_text=nonfinite_as_text)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [
            plain_json(item, f"{where}[{i}]", nonfinite_as_text=nonfinite_as_text)
            for i, item in enumerate(value)
        ]
    raise TypeError(
        f"{where} has type {type(value).__name__}, expected a dict, list, str, number, bool or "
        "None; convert it first (tensors with .item() or .tolist())"
    )


def restore_nonfinite(value: Any) -> Any:
    """Return ``value`` with ``"nan"``, ``"inf"`` and ``"-inf"`` as floats again."""
    if isinstance(value, str):
        return _NONFINITE.get(value, value)
    if isinstance(value, list):
        return [restore_nonfinite(item) for item in value]
    if isinstance(value, dict):
        return {key: restore_nonfinite(item) for key, item in value.items()}
    return value
