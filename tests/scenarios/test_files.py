"""Damaged files are refused, and pickles run nothing."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest

from hypermask_fast.errors import DataError
from hypermask_fast.scenarios import files, load_cifar100, load_mnist
from tests.support.data_files import TRAIN_IMAGES, idx, make_cifar, make_idx, write


def corrupt(data: bytes, how: str) -> bytes:
    return {
        "magic": b"\0\0\x0d" + data[3:],
        "dims": data[:3] + b"\1" + data[4:],
        "empty": b"",
        "header-cut": data[:10],
        "truncated": data[:-1],
        "too-long": data + b"\0",
        "huge-header": data[:4] + b"\xff" * 12 + data[16:],
    }[how]


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gz"])
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("magic", "begins with 00000d03, expected 00000803"),
        ("dims", "begins with 00000801, expected 00000803"),
        ("empty", "begins with nothing"),
        ("header-cut", "holds 10 bytes of IDX data, expected 16"),
        ("truncated", "holds 15695 bytes of IDX data, expected 15696"),
        ("too-long", "holds 15697 bytes of IDX data, expected 15696"),
        ("huge-header", "holds 15696 bytes of IDX data, expected 792281"),
    ],
)
def test_damaged_idx_is_refused(tmp_path, how, says, packed):
    arrays = make_idx(tmp_path, packed=packed)
    data = corrupt(idx(arrays["train-images-idx3-ubyte"]), how)
    name = f"{TRAIN_IMAGES}.gz" if packed else TRAIN_IMAGES
    write(tmp_path / name, gzip.compress(data) if packed else data)
    with pytest.raises(DataError, match=says) as error:
        load_mnist(tmp_path, download=False)
    assert str(tmp_path / name) in str(error.value)
    assert "replace or delete the file" in str(error.value)


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="truncated"),
        pytest.param(lambda data: b"no gzip" + data, id="no-gzip"),
        pytest.param(lambda data: data[:20] + bytes(30) + data[50:], id="broken-inside"),
    ],
)
def test_damaged_gzip_is_refused(tmp_path, damage):
    make_idx(tmp_path, packed=True)
    path = tmp_path / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz cannot be decompressed"):
        load_mnist(tmp_path, download=False)


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gz"])
def test_other_digest_is_refused_by_name(tmp_path, packed):
    make_idx(tmp_path, packed=packed)
    name = f"{TRAIN_IMAGES}.gz" if packed else TRAIN_IMAGES
    seen = hashlib.md5((tmp_path / name).read_bytes()).hexdigest()
    with pytest.raises(DataError) as error:
        load_mnist(tmp_path, download=False)
    for part in (str(tmp_path / name), seen, files.KNOWN_DIGESTS[name][0], "replace or delete"):
        assert part in str(error.value)


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """The published files' form: Python 2 strings, protocol 2, numpy 1's module names."""

    def string(text: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(text)) + text

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        + b"(K\x01"
        + b"".join(b"J" + struct.pack("<i", size) for size in data.shape)
        + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        + b"J\xff\xff\xff\xffK\x00tb\x89"
        + string(data.tobytes())
        + b"tb"
    )
    values = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"fine_labels") + values + string(b"data") + array + b"u."


@pytest.mark.usefixtures("unknown")
@pytest.mark.filterwarnings("error")
def test_python_2_pickles_are_read(tmp_path):
    content = make_cifar(tmp_path)["train"]
    data = python2_pickle(content["data"], content["fine_labels"])
    write(tmp_path / "cifar-100-python/train", data)
    dataset = load_cifar100(tmp_path, download=False)
    assert np.array_equal(dataset.train.images.reshape(-1, 3072), content["data"])
    assert dataset.train.labels.tolist() == content["fine_labels"]


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("checked", [True, False], ids=["md5", "unpickler"])
def test_malicious_pickle_runs_nothing(tmp_path, monkeypatch, checked):
    if not checked:
        monkeypatch.setattr(files, "KNOWN_DIGESTS", {})
    make_cifar(tmp_path)
    written = tmp_path / "written"
    payload = pickle.dumps({"fine_label_names": Malicious(written)}, protocol=2)
    write(tmp_path / "cifar-100-python/meta", payload)
    says = "expected md5 7973b15100" if checked else r"it asks for (io|_io|__builtin__)\.open"
    with pytest.raises(DataError, match=says):
        load_cifar100(tmp_path, download=False)
    assert not written.exists()
    pickle.loads(payload)["fine_label_names"].close()
    assert written.exists()


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "no pickle of arrays", id="empty"),
        pytest.param(b"\x80\x04nonsense", "no pickle of arrays", id="nonsense"),
        pytest.param(None, "no pickle of arrays", id="truncated"),
        pytest.param(pickle.dumps([1]), "holds a list, expected a dict", id="list"),
        pytest.param(pickle.dumps({}), "lacks the uint8 array", id="no-keys"),
        pytest.param(
            pickle.dumps({"data": np.zeros((2, 3072)), "fine_labels": [0, 1]}),
            "lacks the uint8 array",
            id="float-data",
        ),
        pytest.param(
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": ["a", "b"]}),
            "lacks the uint8 array",
            id="text-labels",
        ),
        pytest.param(
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]}),
            "2 images and 1 labels",
            id="counts",
        ),
    ],
)
def test_damaged_cifar_is_refused(tmp_path, content, says):
    make_cifar(tmp_path)
    path = tmp_path / "cifar-100-python/train"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(DataError, match=says) as error:
        load_cifar100(tmp_path, download=False)
    assert "cifar100 (train)" in str(error.value) or str(path) in str(error.value)
