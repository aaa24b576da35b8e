"""Reads data files that came from elsewhere: digests, IDX arrays and pickles of arrays."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hypermask_fast.errors import DataError

# md5 of the files as published (the compressed ones as torchvision lists them). CIFAR-100's pickles
# are also known in a form without the names of the source image files, with the same arrays.
KNOWN_DIGESTS: dict[str, tuple[str, ...]] = {
    "MNIST/raw/train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb",),
    "MNIST/raw/train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624",),
    "MNIST/raw/t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea",),
    "MNIST/raw/t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637",),
    "MNIST/raw/train-images-idx3-ubyte.gz": ("f68b3c2dcbeaaa9fbdd348bbdeb94873",),
    "MNIST/raw/train-labels-idx1-ubyte.gz": ("d53e105ee54ea40749a09fcbcd1e9432",),
    "MNIST/raw/t10k-images-idx3-ubyte.gz": ("9fb629c4189551a2d022fa330f9573f3",),
    "MNIST/raw/t10k-labels-idx1-ubyte.gz": ("ec29112dd5afa0611ce80d1b7f02629c",),
    "FashionMNIST/raw/train-images-idx3-ubyte": ("f4a8712d7a061bf5bd6d2ca38dc4d50a",),
    "FashionMNIST/raw/train-labels-idx1-ubyte": ("9018921c3c673c538a1fc5bad174d6f9",),
    "FashionMNIST/raw/t10k-images-idx3-ubyte": ("8181f5470baa50b63fa0f6fddb340f0a",),
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": ("15d484375f8d13e6eb1aabb0c3f46965",),
    "FashionMNIST/raw/train-images-idx3-ubyte.gz": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d",),
    "FashionMNIST/raw/train-labels-idx1-ubyte.gz": ("25c81989df183df01b3e8a0aad5dffbe",),
    "FashionMNIST/raw/t10k-images-idx3-ubyte.gz": ("bef4ecab320f06d8554ea6380940ec79",),
    "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz": ("bb300cfdad3c16e7a12a480ee83cd310",),
    "cifar-10-batches-py/data_batch_1": ("c99cafc152244af753f735de768cd75f",),
    "cifar-10-batches-py/data_batch_2": ("d4bba439e000b95fd0a9bffe97cbabec",),
    "cifar-10-batches-py/data_batch_3": ("54ebc095f3ab1f0389bbae665268c751",),
    "cifar-10-batches-py/data_batch_4": ("634d18415352ddfa80567beed471001a",),
    "cifar-10-batches-py/data_batch_5": ("482c414d41f54cd18b22e5b47cb7c3cb",),
    "cifar-10-batches-py/test_batch": ("40351d587109b95175f43aff81a1287e",),
    "cifar-10-batches-py/batches.meta": ("5ff9c542aee3614f3951f8cda6e48888",),
    "cifar-100-python/train": (
        "16019d7e3df5f24257cddd939b257f8d",
        "6955403b9f27d09366f96d648bb74d90",
    ),
    "cifar-100-python/test": (
        "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "d218406efafe6b8cb5f52001f1f1dba2",
    ),
    "cifar-100-python/meta": ("7973b15100ade9c7d40fb424638fde48",),
}

_REPLACE = "replace or delete the file and load again"
_UINT8_CODE = 8


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); make it a readable file") from error


def _check_digest(data: bytes, path: Path, relative: str) -> None:
    known = KNOWN_DIGESTS.get(relative)
    seen = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if known and seen not in known:
        raise DataError(
            f"{path} has {len(data)} bytes with md5 {seen}, expected md5 {' or '.join(known)}; "
            f"{_REPLACE}"
        )


def _parse_idx(data: bytes, path: Path, dims: int) -> NDArray[np.uint8]:
    magic = bytes((0, 0, _UINT8_CODE, dims))
    if data[:4] != magic:
        raise DataError(
            f"{path} begins with {data[:4].hex() or 'nothing'}, expected {magic.hex()} "
            f"(IDX, uint8, {dims} dimensions); {_REPLACE}"
        )
    header = 4 + 4 * dims
    shape = tuple(int(size) for size in np.frombuffer(data[4:header].ljust(4 * dims, b"\0"), ">u4"))
    expected = header + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise DataError(
            f"{path} holds {len(data)} bytes of IDX data, expected {expected} for the shape "
            f"{shape} in its header; {_REPLACE}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_idx(root: Path, relative: str, dims: int) -> NDArray[np.uint8]:
    """Read ``root/relative``, or the same name with ``.gz``, as an IDX array of bytes.

    The length is checked against the header, and the md5 against :data:`KNOWN_DIGESTS`.

    Args:
        root: Folder of the data sets.
        relative: Path within ``root``, with forward slashes.
        dims: Number of dimensions that the file must have.

    Returns:
        uint8 array, read-only.

    Raises:
        DataError: the file is damaged.
    """
    path = root / relative
    if path.is_file():
        # The header says more about a truncated file than its digest does.
        data = _read(path)
        array = _parse_idx(data, path, dims)
        _check_digest(data, path, relative)
        return array
    packed = root / f"{relative}.gz"
    data = _read(packed)
    _check_digest(data, packed, f"{relative}.gz")
    try:
        data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{packed} cannot be decompressed ({error}); {_REPLACE}") from error
    return _parse_idx(data, packed, dims)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain Python values, and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        # The module has another name in numpy 1 and 2; an array knows the function itself.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_pickle(root: Path, relative: str) -> dict[str, object]:
    """Read a pickled dictionary of arrays, lists, numbers and strings.

    The md5 is checked before a byte is interpreted, and names other than those that rebuild a numpy
    array are refused.

    Raises:
        DataError: the file is damaged, asks for other names, or is no dictionary.
    """
    path = root / relative
    data = _read(path)
    _check_digest(data, path, relative)
    try:
        value = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    # A damaged pickle can raise anything.
    except Exception as error:
        raise DataError(
            f"{path} is no pickle of arrays ({type(error).__name__}: {error}), expected the file "
            f"that the data set's authors publish; {_REPLACE}"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, expected a dict; {_REPLACE}")
    return value
