"""Rotations of images as tables of places, of the nearest pixels as Pillow finds them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ONE = 1 << 16
"""1 in the fixed point that Pillow counts in."""


def _fixed(value: float) -> int:
    return math.floor(value * _ONE + 0.5)


def rotation(height: int, width: int, degrees: float) -> Tensor:
    """Return where each pixel of a rotated image comes from, int64 (height * width,).

    As ``PIL.Image.rotate`` with its defaults, which torchvision's rotation of Pillow images is: to
    the left about the centre, the nearest pixel, and the corners black.

    Args:
        height, width: Of the image, before and after.
        degrees: Counter-clockwise.

    Returns:
        Places in the flat image, -1 where none is.
    """
    places = torch.arange(height * width).view(height, width)
    degrees %= 360
    if degrees == 0 or degrees == 180 or (degrees in (90, 270) and height == width):
        return places.rot90(int(degrees // 90)).flatten().clone()
    angle = -math.radians(degrees)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    centre_x, centre_y = width / 2, height / 2
    begin_x = centre_x - cos * centre_x - sin * centre_y
    begin_y = centre_y + sin * centre_x - cos * centre_y
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    from_x = _fixed(begin_x + (cos + sin) / 2) + _fixed(cos) * columns + _fixed(sin) * rows
    from_y = _fixed(begin_y + (cos - sin) / 2) + _fixed(-sin) * columns + _fixed(cos) * rows
    x, y = from_x >> 16, from_y >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return torch.where(inside, y * width + x, -1).flatten()
