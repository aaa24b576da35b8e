"""Tiny ImageNet, from a zip and a folder of its layout with a few images a class."""

from __future__ import annotations

import io
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hypermask_fast.errors import DataError
from hypermask_fast.planning.plan import plan
from hypermask_fast.runs import run
from hypermask_fast.scenarios import (
    ImageDataset,
    load,
    load_tiny_imagenet,
    make_scenario,
    tiny_imagenet,
)
from hypermask_fast.settings.config import RunConfig
from tests.support.data_files import tree

Image = pytest.importorskip("PIL.Image", reason="images are read with Pillow")

FOLDER = "tiny-imagenet-200"
CLASSES, TRAIN, TEST = 10, 11, 2
# Not in the order of their names.
WNIDS = [f"n{(7 * number + 3) % 10:08}" for number in range(CLASSES)]


@pytest.fixture(autouse=True)
def counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_imagenet, "PUBLISHED", tiny_imagenet.Counts(CLASSES, TRAIN, TEST))


def jpeg(value: int, *, mode: str = "RGB", side: int = 64) -> bytes:
    """An image of one value, which JPEG keeps exactly in grey."""
    file = io.BytesIO()
    Image.new(mode, (side, side), value if mode == "L" else (value,) * 3).save(file, "JPEG")
    return file.getvalue()


def contents() -> dict[str, bytes]:
    """The files by path: image i of class c has the value 20 c + i, and of validation 200 + c."""
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "test/images/test_0.JPEG": jpeg(0)}
    files["words.txt"] = "\n".join(f"{wnid}\tname{wnid[-1]}, other" for wnid in WNIDS[1:]).encode()
    lines = []
    for number, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"boxes"
        for i in range(TRAIN):
            mode = "L" if i == 3 else "RGB"
            path = f"train/{wnid}/images/{wnid}_{i}.JPEG"
            files[path] = jpeg(20 * number + i, mode=mode)
    for i in range(CLASSES * TEST):
        number = i % CLASSES
        files[f"val/images/val_{i}.JPEG"] = jpeg(200 + number)
        lines.append(f"val_{i}.JPEG\t{WNIDS[number]}\t0\t0\t62\t62\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    return files


def write_folder(root: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        target = root / FOLDER / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def write_zip(root: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(root / f"{FOLDER}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{FOLDER}/val/images/", b"")
        for path, data in files.items():
            archive.writestr(f"{FOLDER}/{path}", data)


WRITERS = pytest.mark.parametrize("write", [write_folder, write_zip])
Writer = Callable[[Path, dict[str, bytes]], None]


def check(data: ImageDataset) -> None:
    assert data.name == "tiny-imagenet"
    assert data.class_names == (WNIDS[0], *(f"name{wnid[-1]}" for wnid in WNIDS[1:]))
    expected = [20 * c + i for c in range(CLASSES) for i in range(TRAIN)]
    assert data.train.images.shape == (CLASSES * TRAIN, 3, 64, 64)
    assert data.train.images[:, 0, 5, 7].tolist() == expected
    assert bool((data.train.images == data.train.images[:, :1, :1, :1]).all())
    assert data.train.labels.tolist() == [c for c in range(CLASSES) for _ in range(TRAIN)]
    tested = [200 + c for c in range(CLASSES) for _ in range(TEST)]
    assert data.test.images[:, 2, 0, 0].tolist() == tested
    assert data.test.labels.tolist() == [c for c in range(CLASSES) for _ in range(TEST)]


@WRITERS
def test_images_and_labels(write: Writer, tmp_path: Path) -> None:
    write(tmp_path, contents())
    before = set(tree(tmp_path))
    check(load("tiny-imagenet", tmp_path))
    assert set(tree(tmp_path)) - before == {f"{FOLDER}.npz"}


@WRITERS
def test_images_are_decoded_once(write: Writer, tmp_path: Path) -> None:
    write(tmp_path, contents())
    load_tiny_imagenet(tmp_path)
    for path in (tmp_path / f"{FOLDER}.zip", tmp_path / FOLDER):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    check(load_tiny_imagenet(tmp_path))


def test_the_zip_is_taken_where_the_folder_is_not_whole(tmp_path: Path) -> None:
    files = contents()
    write_zip(tmp_path, files)
    write_folder(tmp_path, dict(list(files.items())[:20]))
    check(load_tiny_imagenet(tmp_path))


def without(path: str) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.__delitem__(path)


def changed(path: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.__setitem__(path, data)


FIRST = f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG"


@WRITERS
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without("wnids.txt"), "wnids.txt"),
        (changed("wnids.txt", b"../../etc\n" * CLASSES), "1 classes in its wnids.txt, expected 10"),
        (changed("wnids.txt", "\n".join([*WNIDS[1:], "../../x"]).encode()), "such as n01443537"),
        (without(FIRST), f"10 training images of class {WNIDS[0]}, expected 11"),
        (without("val/val_annotations.txt"), "val_annotations.txt"),
        (without("val/images/val_3.JPEG"), "a line 'val_3.JPEG.*no such image"),
        (changed("val/val_annotations.txt", b"val_0.JPEG\tn99999999\n"), "no such image or class"),
        (changed("val/val_annotations.txt", b"../wnids.txt\t" + WNIDS[0].encode()), "no such imag"),
        (changed("val/val_annotations.txt", b""), f"0 validation images of class {WNIDS[0]}"),
        (changed(FIRST, b"no image"), f"{FIRST} is no image that can be read"),
        (changed(FIRST, jpeg(0)[:-300]), f"{FIRST} is no image that can be read"),
        (changed(FIRST, jpeg(0, side=32)), r"shape \(3, 32, 32\), expected \(3, 64, 64\)"),
    ],
)  # fmt: skip
def test_what_is_damaged_or_missing_is_named(
    write: Writer, damage: Callable[[dict[str, bytes]], None], says: str, tmp_path: Path
) -> None:
    files = contents()
    damage(files)
    write(tmp_path, files)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=f"{FOLDER}.*{says}.*; "):
        load_tiny_imagenet(tmp_path)
    assert tree(tmp_path) == before


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    """Change a byte in the data of the first training image."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{FOLDER}/{FIRST}")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 255
    path.write_bytes(bytes(data))


def _escape(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../outside.txt", b"out")


def _absolute(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo("/outside.txt"), b"out")


def _link(path: Path) -> None:
    info = zipfile.ZipInfo(f"{FOLDER}/test")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, b"..")


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{FOLDER}/wnids.txt", bytes(2**21))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_cut, "is no whole zip"),
        (_flip, f"a {FIRST} that cannot be read"),
        (_escape, "outside of its folder"),
        (_absolute, "outside of its folder"),
        (_link, "is a link"),
        (_bomb, "wnids.txt of 2097152 bytes"),
    ],
)
def test_a_zip_that_is_not_the_published_one(
    damage: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    write_zip(root, contents())
    damage(root / f"{FOLDER}.zip")
    before = tree(tmp_path)
    with pytest.raises(DataError, match=f"{FOLDER}.zip .*{says}.*; replace it by the published"):
        load_tiny_imagenet(root)
    assert tree(tmp_path) == before


def test_without_files_both_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"neither {FOLDER}.zip nor the folder {FOLDER} is in"):
        load_tiny_imagenet(tmp_path)


@pytest.mark.parametrize("cut", [1000, 10**6, None])
def test_a_damaged_cache_is_named(cut: int | None, tmp_path: Path) -> None:
    write_zip(tmp_path, contents())
    load_tiny_imagenet(tmp_path)
    cache = tmp_path / f"{FOLDER}.npz"
    data = bytearray(cache.read_bytes())
    if cut is None:
        data[len(data) // 2] ^= 1
    cache.write_bytes(bytes(data[:cut]))
    with pytest.raises(DataError, match=f"{FOLDER}.npz cannot be read .*; delete it"):
        load_tiny_imagenet(tmp_path)
    cache.unlink()
    check(load_tiny_imagenet(tmp_path))


def test_a_cache_of_another_data_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zip(tmp_path, contents())
    load_tiny_imagenet(tmp_path)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"\(110, 3, 64, 64\).*expected.*\(100000, 3, 64, 64\)"):
        load_tiny_imagenet(tmp_path)


def test_a_cache_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zip(tmp_path, contents())
    before = tree(tmp_path)

    def full(file: io.BufferedWriter, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="No space left.*decoded at each start; free space"):
        check(load_tiny_imagenet(tmp_path))
    assert tree(tmp_path) == before


def test_tasks_are_those_of_the_published_order(tmp_path: Path) -> None:
    write_zip(tmp_path, contents())
    for seed in (0, 5):
        scenario = make_scenario("split-tiny-imagenet", tmp_path, seed=seed, validation=10)
        order = np.random.default_rng(seed).permutation(CLASSES).tolist()
        assert [c for task in scenario for c in task.classes] == order
        assert [task.num_classes for task in scenario] == [5] * (CLASSES // 5)
        task = scenario[0]
        assert torch.bincount(task.validation.labels).tolist() == [2] * 5
        assert task.train_preprocess is task.eval_preprocess
        assert (len(task.train), len(task.test)) == (5 * (TRAIN - 2), 5 * TEST)
        ((x, y),) = task.evaluation_batches("test")
        # ImageNet's mean and deviation of the first channel.
        pixel = (200 + np.array(task.classes)[y.numpy()]) / 255
        np.testing.assert_allclose(x[:, 0, 9, 9].numpy(), (pixel - 0.485) / 0.229, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("tiny-resnet", {"sparsity": 0.0, "beta": 1.0, "lam": 0.1, "lr": 1e-4, "bn": "batch"}),
        ("tiny-zenke", {"sparsity": 50.0, "beta": 0.01, "lam": 1.0, "lr": 1e-3}),
    ],
)
def test_presets_hold_the_published_settings(name: str, published: dict[str, object]) -> None:
    values = RunConfig.from_preset(name).options()
    network = {"tiny-resnet": "resnet", "tiny-zenke": "zenkenet64"}[name]
    published |= {"network": network, "tasks": 40, "validation": 250, "augment": False}
    published |= {"embedding_dim": 96, "hidden": (100, 100), "batch_size": 16, "epochs": 10}
    published |= {"masked_l1": False, "schedule": "plateau", "selection": "best_published"}
    assert {setting: values[setting] for setting in published} == published
    assert plan(RunConfig.from_preset(name, device="cpu"), memory=2**33).fits()


def test_a_run_of_the_preset_takes_steps(tmp_path: Path) -> None:
    write_zip(tmp_path, contents())
    sizes = {"tasks": 2, "steps": 2, "batch_size": 2, "validation": 10, "device": "cpu"}
    config = RunConfig.from_preset("tiny-zenke", data_dir=str(tmp_path), **sizes)
    scenario, trainer = run.build(config)
    trainer.fit(scenario[0])
    assert trainer.tasks_done == 1
    assert np.isfinite(trainer.accuracy[1, 0])
