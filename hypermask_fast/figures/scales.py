"""Ticks of axes and the widths of texts."""

from __future__ import annotations

import math
import unicodedata

_NARROW = set("ijltfI.,:;'|!()[]/ -")


def text_width(text: str, size: float) -> float:
    """Return about how wide a text is in a plain sans-serif font, in the unit of its size."""
    ems = 0.0
    for letter in text:
        if letter in _NARROW:
            ems += 0.35
        elif unicodedata.east_asian_width(letter) in "WF":
            ems += 1.0
        elif letter.isupper() or letter in "mw%<>=+&~":
            ems += 0.8
        else:
            ems += 0.6
    return ems * size


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from at or above ``low`` to at or below ``high``, at most so many."""
    if not high > low:
        return [low]
    raw = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step + 0.0 for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten in a range; where it has few, their doubles and fives too."""
    begin, end = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((end - begin) / 7))
    found = [10.0**power for power in range(begin, end + 1, every)]
    found = [value for value in found if low * 0.999 <= value <= high * 1.001]
    if len(found) >= 3:
        return found
    more = (k * 10.0**power for power in range(begin, end + 1) for k in (1, 2, 5))
    return [value for value in more if low * 0.999 <= value <= high * 1.001]


def number(value: float) -> str:
    """Return a tick's number, short."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, _, power = f"{value:.1e}".partition("e")
        mantissa = mantissa.removesuffix(".0")
        return f"{mantissa}e{int(power)}"
    return f"{value:.10g}" if value == round(value, 6) else f"{value:.4g}"


def padded(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    """Return ends of an axis with some room around the data; never an empty range."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return 0.0, 1.0
    room = (high - low) * share or max(abs(high) * share, 0.5)
    return low - room, high + room
