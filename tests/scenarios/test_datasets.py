"""Readers of image data sets, against files written here."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch

from hypermask_fast.errors import ConfigError, DataError
from hypermask_fast.scenarios import (
    ImageDataset,
    ImageSet,
    datasets,
    files,
    load,
    load_cifar100,
    load_digits,
    load_fashion_mnist,
    load_mnist,
)
from hypermask_fast.scenarios import vision as _torchvision

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


def make_cifar(root) -> dict[str, dict]:
    rng = np.random.default_rng(0)
    content = {
        part: {
            "data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
            "fine_labels": rng.integers(0, 100, n).tolist(),
        }
        for part, n in (("train", 8), ("test", 4))
    }
    content["meta"] = {"fine_label_names": [f"name{i}" for i in range(100)]}
    for part, value in content.items():
        write(root / "cifar-100-python" / part, pickle.dumps(value, protocol=4))
    return content


def tree(root) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.fixture
def unknown(monkeypatch):
    """Accept files whose md5 is not that of the published ones."""
    monkeypatch.setattr(files, "KNOWN_DIGESTS", {})


def test_digits_are_the_uci_images_split_by_rule():
    digits = load_digits()
    bundled = np.load(files.Path(files.__file__).with_name("digits.npz"), allow_pickle=False)
    images, labels = bundled["images"], bundled["labels"]
    assert (len(digits.train), len(digits.test)) == (1442, 355)
    counts = {digit: 0 for digit in range(10)}
    expected = {"train": [], "test": []}
    for place, label in enumerate(labels):
        counts[int(label)] += 1
        expected["test" if counts[int(label)] % 5 == 0 else "train"].append(place)
    for part, places in expected.items():
        image_set = getattr(digits, part)
        assert image_set.labels.tolist() == labels[places].tolist()
        # 0..16 is scaled to 0..255 and rounded.
        error = image_set.images[:, 0].numpy() - images[places] * 15.9375
        assert np.abs(error).max() <= 0.5
        assert image_set.images.min() == 0
        assert image_set.images.max() == 255


def test_digits_are_scikit_learns():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    bundled = np.load(files.Path(files.__file__).with_name("digits.npz"), allow_pickle=False)
    assert np.array_equal(bundled["images"], source.images)
    assert np.array_equal(bundled["labels"], source.target)


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gz"])
@pytest.mark.parametrize(
    ("loader", "folder"),
    [(load_mnist, "MNIST"), (load_fashion_mnist, "FashionMNIST")],
    ids=["mnist", "fashion"],
)
def test_idx_files_are_read(tmp_path, loader, folder, packed):
    arrays = make_idx(tmp_path, folder, packed)
    dataset = loader(tmp_path, download=False)
    for image_set, prefix in ((dataset.train, "train"), (dataset.test, "t10k")):
        assert image_set.images.dtype == torch.uint8
        assert image_set.labels.dtype == torch.int64
        assert np.array_equal(image_set.images[:, 0], arrays[f"{prefix}-images-idx3-ubyte"])
        assert np.array_equal(image_set.labels, arrays[f"{prefix}-labels-idx1-ubyte"])
    assert len(dataset.class_names) == 10


@pytest.mark.usefixtures("unknown")
def test_idx_files_are_torchvisions(tmp_path):
    try:
        torchvision = _torchvision.import_torchvision()
    except ImportError:
        pytest.skip("needs torchvision")
    make_idx(tmp_path)
    dataset = load_mnist(str(tmp_path), download=False)
    for image_set, train in ((dataset.train, True), (dataset.test, False)):
        reference = torchvision.datasets.MNIST(tmp_path, train=train)
        assert torch.equal(image_set.images[:, 0], reference.data)
        assert torch.equal(image_set.labels, reference.targets)


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


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros(19, np.uint8), "20 images and 19 labels"),
        (np.full(20, 10, np.uint8), "labels from 10 to 10; expected 0 to 9"),
    ],
    ids=["count", "range"],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, says):
    make_idx(tmp_path)
    write(tmp_path / TRAIN_LABELS, idx(labels))
    with pytest.raises(DataError, match=says):
        load_mnist(tmp_path, download=False)


@pytest.mark.parametrize(
    ("loader", "names", "folder"),
    [
        (load_mnist, "train-images-idx3-ubyte, train-labels-idx1-ubyte", "MNIST/raw"),
        (load_fashion_mnist, "train-images-idx3-ubyte, train-labels", "FashionMNIST/raw"),
        (load_cifar100, "train, test, meta", "cifar-100-python"),
    ],
    ids=["mnist", "fashion", "cifar100"],
)
def test_missing_files_are_named(tmp_path, loader, names, folder):
    with pytest.raises(DataError) as error:
        loader(tmp_path / "none", download=False)
    for part in (names, str(tmp_path / "none" / folder), "download=True"):
        assert part in str(error.value)
    assert tree(tmp_path) == []


@pytest.mark.parametrize("exists", [True, False], ids=["root-there", "root-new"])
def test_failed_download_leaves_nothing_and_tells_the_reason(tmp_path, monkeypatch, exists):
    def fail(class_name, root):
        write(files.Path(root) / TRAIN_IMAGES, b"half a file")
        raise OSError("<urlopen error\n [Errno -2] Name or service not known>")

    monkeypatch.setattr(datasets, "_download", fail)
    root = tmp_path if exists else tmp_path / "a" / "b"
    with pytest.raises(DataError, match="Name or service not known") as error:
        load_mnist(root)
    assert "connect to the network" in str(error.value)
    assert "\n" not in str(error.value)
    assert tree(tmp_path) == []


@pytest.mark.usefixtures("unknown")
def test_download_brings_only_what_is_missing(tmp_path, monkeypatch):
    calls = []

    def fetch(class_name, root):
        calls.append(class_name)
        make_idx(files.Path(root), class_name)

    monkeypatch.setattr(datasets, "_download", fetch)
    labels = np.arange(20, dtype=np.uint8)[::-1] % 10
    write(tmp_path / TRAIN_LABELS, idx(np.ascontiguousarray(labels)))
    dataset = load_mnist(tmp_path)
    assert dataset.train.labels.tolist() == labels.tolist()
    assert calls == ["MNIST"]
    assert len(tree(tmp_path)) == len(("MNIST", "raw")) + 4
    load_mnist(tmp_path)
    assert calls == ["MNIST"]


def test_torchvision_that_is_not_installed_is_the_reason(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(_torchvision.importlib, "import_module", missing)
    with pytest.raises(DataError, match="No module named 'torchvision'"):
        load_cifar100(tmp_path)


def test_other_import_errors_of_torchvision_are_kept(monkeypatch):
    def broken(name):
        raise RuntimeError("undefined symbol")

    monkeypatch.setattr(_torchvision.importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="undefined symbol"):
        _torchvision.import_torchvision()


@pytest.mark.usefixtures("unknown")
def test_cifar_pickles_are_read(tmp_path):
    content = make_cifar(tmp_path)
    dataset = load_cifar100(tmp_path, download=False)
    for part in ("train", "test"):
        image_set = getattr(dataset, part)
        planes = content[part]["data"].reshape(-1, 3, 32, 32)
        assert np.array_equal(image_set.images, planes)
        assert image_set.labels.tolist() == content[part]["fine_labels"]
    assert dataset.class_names == tuple(f"name{i}" for i in range(100))


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


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize(
    ("name", "make", "images"),
    [("mnist", make_idx, 20), ("cifar100", make_cifar, 8)],
    ids=["mnist", "cifar100"],
)
def test_load_by_name(tmp_path, name, make, images):
    make(tmp_path)
    dataset = load(name, tmp_path, download=False)
    assert dataset.name == name
    assert len(dataset.train) == images
    assert len(load("digits").train) == 1442


def test_load_refuses_names_and_needs_a_root():
    with pytest.raises(ConfigError, match=r"did you mean 'mnist'.*digits, mnist, fashion-mnist"):
        load("mnits")
    with pytest.raises(ConfigError, match="give root"):
        load("mnist")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        pytest.param(torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), id="float-images"),
        pytest.param(torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), id="no-channels"),
        pytest.param(torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2).int(), id="int32-labels"),
        pytest.param(torch.zeros(2, 1, 4, 4).byte(), torch.zeros(3).long(), id="counts"),
    ],
)
def test_image_set_refuses_tensors(images, labels):
    with pytest.raises(ValueError, match="give torch"):
        ImageSet(images, labels)


@pytest.mark.parametrize(
    ("test_images", "says"),
    [
        pytest.param(torch.zeros(2, 1, 5, 5).byte(), "must be equal", id="shapes"),
        pytest.param(torch.zeros(0, 1, 4, 4).byte(), "no test images", id="empty"),
    ],
)
def test_image_dataset_refuses_parts(test_images, says):
    train = ImageSet(torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2).long())
    test = ImageSet(test_images, torch.zeros(len(test_images)).long())
    with pytest.raises(DataError, match=says):
        ImageDataset("made", train, test, ("a",))
