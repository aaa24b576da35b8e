"""A training batch of images in one launch: rows of a stream's table, crop, flip and scaling.

    x[b, i] = (image[example[b]][place(i)] / 255 - mean) / std,    0 / 255 outside of the image

where place runs back through permutation, source, flip, crop and padding, as
:class:`hypermask_fast.scenarios.Preprocess` says. An output pixel
reads a byte, and 8 of each table, and writes 4.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import on_device
from hypermask_fast.kernels.tuning import choose

CONFIGS = (
    {"BLOCK": 1024, "num_warps": 4},
    {"BLOCK": 512, "num_warps": 4},
    {"BLOCK": 2048, "num_warps": 8},
)
_PER_BYTE = tl.constexpr(1 / 255)


@triton.jit
def _image_place(
    place,
    row_ptr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PAD: tl.constexpr,
    CROP: tl.constexpr,
    RANDOM: tl.constexpr,
):
    """The place in an image of one in the output of the crop, and whether it is in the image."""
    height: tl.constexpr = HEIGHT + 2 * PAD
    width: tl.constexpr = WIDTH + 2 * PAD
    channel = place // (height * width)
    y = place // width % height - PAD
    x = place % width
    if RANDOM:
        x = tl.where(tl.load(row_ptr + 4) != 0, width - 1 - x, x)
        x += tl.load(row_ptr + 3).to(tl.int32) - CROP
        y += tl.load(row_ptr + 2).to(tl.int32) - CROP
    x -= PAD
    inside = (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
    return (channel * HEIGHT + y) * WIDTH + x, inside


@triton.jit(do_not_specialize=["number", "batch", "positions"])
def _batch_kernel(
    images_ptr,
    table_ptr,
    number_ptr,
    permutation_ptr,
    source_ptr,
    mean_ptr,
    std_ptr,
    inputs_ptr,
    labels_ptr,
    number,
    batch,
    positions,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PAD: tl.constexpr,
    CROP: tl.constexpr,
    COLUMNS: tl.constexpr,
    MEANS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pixels (BLOCK,) of a sample; the first program of a sample also writes its label."""
    area: tl.constexpr = (HEIGHT + 2 * PAD) * (WIDTH + 2 * PAD)
    sample = tl.program_id(0)
    first = (tl.load(number_ptr) if number_ptr is not None else number).to(tl.int64)
    row_ptr = table_ptr + (first * batch + sample) % positions * COLUMNS
    if tl.program_id(1) == 0:
        tl.store(labels_ptr + sample, tl.load(row_ptr + 1))
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < CHANNELS * area
    place = pixel
    if permutation_ptr is not None:
        place = tl.load(permutation_ptr + place, mask=valid, other=0).to(tl.int32)
    shown = valid
    if source_ptr is not None:
        place = tl.load(source_ptr + place, mask=valid, other=-1).to(tl.int32)
        shown = place >= 0
    place, inside = _image_place(place, row_ptr, HEIGHT, WIDTH, PAD, CROP, COLUMNS > 2)
    image_ptr = images_ptr + tl.load(row_ptr) * (CHANNELS * HEIGHT * WIDTH)
    value = tl.load(image_ptr + place, mask=shown & inside & valid, other=0)
    # As PyTorch divides by a number on a GPU.
    x = value.to(tl.float32) * _PER_BYTE
    if MEANS:
        channel = pixel // area if MEANS > 1 else pixel * 0
        mean = tl.load(mean_ptr + channel, mask=valid, other=0.0)
        x = tl.div_rn(x - mean, tl.load(std_ptr + channel, mask=valid, other=1.0))
    at = sample.to(tl.int64) * (CHANNELS * area) + pixel
    tl.store(inputs_ptr + at, x, mask=valid)


def batch(
    images: Tensor,
    table: Tensor,
    number: int | Tensor,
    size: int,
    *,
    pad: int = 0,
    crop: int = 0,
    permutation: Tensor | None = None,
    source: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return a batch of a stream, on its device, without waiting for it.

    Args:
        images: uint8 (n, C, H, W), contiguous.
        table: int64 (positions, 2 or 5), contiguous, a row a position of the stream: example and
            label, and for images that are cropped or flipped the draws.
        number: Of the batch; an int or a 0-d int64 tensor.
        size: Samples in the batch.
        pad, crop, permutation, source, mean, std: As of
            :class:`hypermask_fast.scenarios.Preprocess`, with tensors on the device.

    Returns:
        float32 (size, C, H + 2 pad, W + 2 pad), and labels int64 (size,).
    """
    _, channels, height, width = images.shape
    shape = (channels, height + 2 * pad, width + 2 * pad)
    inputs = images.new_empty((size, *shape), dtype=torch.float32)
    labels = table.new_empty(size)
    pixels = shape[0] * shape[1] * shape[2]
    config = choose("batch", CONFIGS, images.device, samples=size, pixels=pixels)
    on_gpu = isinstance(number, Tensor) and number.device == images.device
    places = (None if x is None else x.contiguous() for x in (permutation, source))
    with on_device(images):
        _batch_kernel[(size, triton.cdiv(pixels, config["BLOCK"]))](
            *(images, table, number if on_gpu else None, *places, mean, std),
            *(inputs, labels, 0 if on_gpu else int(number), size, len(table)),
            CHANNELS=channels,
            HEIGHT=height,
            WIDTH=width,
            PAD=pad,
            CROP=crop,
            COLUMNS=table.shape[1],
            MEANS=0 if mean is None else 1 + (mean.numel() > 1),
            enable_fp_fusion=False,
            **config,
        )
    return inputs, labels
