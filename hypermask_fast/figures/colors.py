"""Colours that readers with any colour vision tell apart, on light and on dark ground."""

from __future__ import annotations

# Viridis, at tenths.
_LOWER = ("440154", "482475", "414487", "355f8d", "2a788e", "21918c")
_UPPER = ("22a884", "44bf70", "7ad151", "bddf26", "fde725")
_STOPS = (*_LOWER, *_UPPER)
LIGHT = ("#0072b2", "#d55e00", "#008c66", "#b8578c", "#8a6d00", "#3a8fc7", "#555555")
DARK = ("#62b8f0", "#ff9950", "#35cf9f", "#eaa3cb", "#e6c84f", "#a9b8ff", "#c8c8c8")
"""Of series, by place, from the palette of Okabe and Ito."""
_ENDS_OF_SHADES = 0.08, 0.86  # which can be seen on both grounds


def rgb(share: float) -> tuple[int, int, int]:
    """Return the colour of a place in 0 to 1 on the scale, red, green and blue in 0 to 255."""
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    below = min(int(place), len(_STOPS) - 2)
    a, b = ([int(_STOPS[i][at : at + 2], 16) for at in (0, 2, 4)] for i in (below, below + 1))
    red, green, blue = (round(x + (y - x) * (place - below)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def hexadecimal(share: float) -> str:
    """Return the colour of a place on the scale as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*rgb(share))


def shade(share: float) -> str:
    """Return the colour of a line among many in an order."""
    low, high = _ENDS_OF_SHADES
    return hexadecimal(low + (high - low) * share)


def contrast(share: float) -> str:
    """Return black or white, whichever is read better on a place of the scale."""
    red, green, blue = ((each / 255) ** 2.2 for each in rgb(share))
    return "#000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#fff"
