"""Writing of tensors to a safetensors file in blocks, with the digest taken on the way."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hypermask_fast.errors import TrainingError

_BLOCK = 8 * 2**20
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _blocks(flat: Tensor) -> Iterator[Tensor]:
    for start in range(0, flat.numel(), _BLOCK):
        yield flat[start : start + _BLOCK]


def _nonfinite(tensor: Tensor) -> int:
    """Return how many entries are NaN or infinite; no large temporary where none is."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return 0
    if tensor.element_size() == 1:  # float8 has no comparisons
        tensor = tensor.float()
    if bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
        return 0
    return sum(int((~torch.isfinite(block)).sum()) for block in _blocks(tensor.reshape(-1)))


def check_kinds(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a name or a kind of tensor does not fit the file format."""
    for name, tensor in tensors.items():
        if name == "__metadata__" or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f"tensor name {name!r} cannot be stored as safetensors; rename it")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
            raise ValueError(
                f"tensor {name!r} is {tensor.layout} {tensor.dtype} on {tensor.device}, expected a "
                f"dense tensor with data, of one of {', '.join(map(str, _DTYPES))}; convert it"
            )


def check_tensors(tensors: Mapping[str, Tensor], step: int) -> None:
    """Refuse what must not, or cannot, be stored in a checkpoint.

    Raises:
        TrainingError: A tensor holds NaN or infinity; the first one is named.
        ValueError: A name or a kind of tensor does not fit the file format.
    """
    check_kinds(tensors)
    counts = {name: _nonfinite(tensor.detach()) for name, tensor in tensors.items()}
    bad = [name for name, count in counts.items() if count]
    if bad:
        others = f" (and {len(bad) - 1} other tensors have some)" if len(bad) > 1 else ""
        raise TrainingError(
            f"tensor {bad[0]!r} has {counts[bad[0]]} non-finite values of "
            f"{tensors[bad[0]].numel()} at step {step}{others}, expected none, so no checkpoint "
            "was written; lower the learning rate and `hypermask resume --allow-changes`"
        )


def safetensors_blocks(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file, at most 8 MiB of the data at a time.

    The library's own writer wants all tensors on the host, contiguous and unshared at once. In
    blocks, a save needs no second copy of them, and the digest no second pass. Format:
    https://github.com/huggingface/safetensors#format

    Args:
        tensors: By name.
        metadata: Text by name that the file's header has beside them.
    """
    # Wide types first keep every tensor aligned in a mapped file.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        plain = tensors[name].detach().resolve_conj().resolve_neg().contiguous()
        for block in _blocks(plain.reshape(-1).view(torch.uint8)):
            yield block.cpu().numpy().data


def write_file(path: Path, blocks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write ``blocks`` to a new file and to the disk; return its length and SHA-256."""
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for block in blocks:
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}
