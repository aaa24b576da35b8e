"""Reads one image file as a tensor."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from hypermask_fast.errors import DataError


def read_image(
    file: Path | IO[bytes],
    size: tuple[int, int] | None = None,
    grayscale: bool = False,
    title: str | None = None,
) -> Tensor:
    """Return an image as uint8 (C, H, W).

    Args:
        file: A file of a format that Pillow knows, or one that is open.
        size: Height and width to resize to (bilinear, antialiased). Default: as it is.
        grayscale: One channel in place of three. Default False.
        title: What messages call the file. Default: its path.

    Raises:
        DataError: It is no image that can be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            image = opened.convert("L" if grayscale else "RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{title or file} is no image that can be read ({error}); replace it"
        ) from error
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels[None] if grayscale else pixels.permute(2, 0, 1)
