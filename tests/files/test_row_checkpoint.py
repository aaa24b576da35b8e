"""Checkpoints with rows of processes: what is read, whole or in part, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast.errors import CheckpointError, TrainingError
from hypermask_fast.files import checkpoint, row_checkpoint
from hypermask_fast.files.divided_tensors import digest
from hypermask_fast.files.tensor_file import write_file
from hypermask_fast.head.shard import Place, RowShard
from hypermask_fast.training.divided import Part

ALONE = Place(0, 1)
DIVIDED = {"head": 0, "targets": 1}


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "head": torch.randn(7, 3, generator=generator),
        "targets": torch.randn(2, 7, generator=generator).bfloat16(),
        "rest": torch.arange(4),
    }


def saved(folder: Path, **changes: Tensor) -> Path:
    """A checkpoint with rows, by one process that has all of them."""
    every = {**tensors(), **changes}
    rows = {name: Part(every.pop(name), dim, 0, 7) for name, dim in DIVIDED.items()}
    row_checkpoint.save(folder, 4, every, rows, {"a": 1}, ALONE)
    path = checkpoint.latest(folder)
    assert path is not None
    return path


def without_neighbours(monkeypatch: pytest.MonkeyPatch) -> RowShard:
    """The rows of the second of three processes, whose others say nothing."""
    monkeypatch.setattr(Place, "all", lambda _, value: [value])
    return RowShard(7, Place(1, 3))


def test_rows_come_back_whole(tmp_path: Path) -> None:
    found = checkpoint.load(saved(tmp_path))
    assert (found.step, found.state) == (4, {"a": 1})
    assert found.tensors.keys() == tensors().keys()
    for name, value in tensors().items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)


def test_a_process_gets_its_rows_of_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.save(tmp_path, 4, tensors(), {}, divided=DIVIDED)
    found = checkpoint.load(path, shard=without_neighbours(monkeypatch)).tensors
    assert torch.equal(found["head"], tensors()["head"][3:6])
    assert torch.equal(found["targets"], tensors()["targets"][:, 3:6])
    assert torch.equal(found["rest"], tensors()["rest"])


def test_what_follows_from_rows_is_of_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).double()
    more = {"task/frozen_weight": weight, "task/frozen_gram": weight.t() @ weight}
    divided = {"task/frozen_weight": 0}
    path = checkpoint.save(tmp_path, 1, more, {}, divided=divided)
    own = weight[3:6]
    found = checkpoint.load(path, shard=without_neighbours(monkeypatch)).tensors
    torch.testing.assert_close(found["task/frozen_gram"], own.t() @ own, rtol=1e-14, atol=1e-14)
    rows = {"task/frozen_weight": Part(weight, 0, 0, 7)}
    row_checkpoint.save(tmp_path, 2, {}, rows, {}, ALONE)
    whole = checkpoint.load_latest(tmp_path).tensors
    torch.testing.assert_close(whole["task/frozen_gram"], weight.t() @ weight)


def test_other_rows_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "rows")
    checkpoint.save(tmp_path / "whole", 4, tensors(), {}, divided=DIVIDED)
    for name in ("rows", "whole"):
        with pytest.raises(CheckpointError, match="has head of 7 rows and the processes share 5"):
            checkpoint.load_latest(tmp_path / name, shard=RowShard(5, ALONE))


def test_what_does_not_say_what_is_divided_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 4, tensors(), {})
    with pytest.raises(CheckpointError, match="earlier version made it; give shard_head=False"):
        checkpoint.load_latest(tmp_path, shard=RowShard(7, ALONE))


def test_a_row_that_is_not_finite_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    path = saved(tmp_path)
    broken = tensors()["head"].index_fill(0, torch.tensor(5), torch.nan)
    with pytest.raises(TrainingError, match="'head' has 3 non-finite values of 21"):
        saved(tmp_path, head=broken)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(checkpoint.load(path).tensors["head"], tensors()["head"])


class Evil:
    """What a pickle can make of a file that is only read."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("made-by-a-pickle"),)


@pytest.mark.parametrize("what", [Evil(), [1]])
def test_a_pickle_with_anything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: object
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "run")
    places = path / "rows" / ".metadata"
    old = digest(places)
    places.unlink()
    new = write_file(places, [pickle.dumps(what)])
    index = (path / "index.json").read_text()
    index = index.replace(old["sha256"], new["sha256"]).replace(
        f'"bytes": {old["bytes"]},', f'"bytes": {new["bytes"]},'
    )
    (path / "index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"\.metadata holds "):
        checkpoint.load(path)
    assert not Path("made-by-a-pickle").exists()
