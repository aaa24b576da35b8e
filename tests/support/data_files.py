"""Small data files in the formats of the published ones."""

from __future__ import annotations

import gzip
import pickle
import struct

import numpy as np

RAW = "MNIST/raw"
TRAIN_IMAGES = f"{RAW}/train-images-idx3-ubyte"
TRAIN_LABELS = f"{RAW}/train-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write(path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def make_idx(root, folder="MNIST", packed=False) -> dict[str, np.ndarray]:
    """Write a small family of IDX files, and return their arrays."""
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, n in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{prefix}-images-idx3-ubyte"] = images
        arrays[f"{prefix}-labels-idx1-ubyte"] = rng.permutation(n).astype(np.uint8) % 10
    for name, array in arrays.items():
        path = root / folder / "raw" / name
        data = idx(array)
        write(
            path.with_name(f"{name}.gz") if packed else path,
            gzip.compress(data) if packed else data,
        )
    return arrays


def make_cifar(root, each=0) -> dict[str, dict]:
    """Write a small CIFAR-100, with ``each`` images of every class where it is given."""
    rng = np.random.default_rng(0)
    content = {
        part: {
            "data": rng.integers(0, 256, (100 * each or n, 3072), dtype=np.uint8),
            "fine_labels": list(range(100)) * each or rng.integers(0, 100, n).tolist(),
        }
        for part, n in (("train", 8), ("test", 4))
    }
    content["meta"] = {"fine_label_names": [f"name{i}" for i in range(100)]}
    for part, value in content.items():
        write(root / "cifar-100-python" / part, pickle.dumps(value, protocol=4))
    return content


def make_cifar10(root, per_batch=20) -> dict[str, dict]:
    """Write a small CIFAR-10 with all classes in each file, and return what is in it."""
    rng = np.random.default_rng(1)
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    content = {
        name: {
            "data": rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8),
            "labels": [i % 10 for i in range(per_batch)],
        }
        for name in (*batches, "test_batch")
    }
    content["batches.meta"] = {"label_names": [f"kind{i}" for i in range(10)]}
    for name, value in content.items():
        write(root / "cifar-10-batches-py" / name, pickle.dumps(value, protocol=4))
    return content


def tree(root) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))
