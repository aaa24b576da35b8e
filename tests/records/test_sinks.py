"""Copies of the log for other libraries, by stand-ins of these, which cannot kill a run."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from hypermask_fast.errors import ConfigError
from hypermask_fast.runs import run
from hypermask_fast.settings.config import RunConfig
from tests.support.run_cases import short


class Board:
    """What a writer of TensorBoard and a run of W&B do."""

    def __init__(self, fails_at: str = "", **options: Any) -> None:
        self.options, self.fails_at = options, fails_at
        self.seen: list[tuple[str, float, int]] = []
        self.is_closed = False

    def _do(self, what: str) -> None:
        if what == self.fails_at:
            raise OSError(f"{what} failed")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._do("add")
        self.seen.append((name, value, step))

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.add_scalar(name, value, step)

    def close(self) -> None:
        self._do("close")
        self.is_closed = True

    finish = close


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The stand-ins that were opened, by name; "fails_at" tells them where to fail."""
    found: dict[str, Any] = {"fails_at": ""}

    def opened(name: str) -> Any:
        def make(**options: Any) -> Board:
            if found["fails_at"] == "open":
                raise OSError("open failed")
            found[name] = Board(found["fails_at"], **options)
            return found[name]

        return make

    tensorboard = types.SimpleNamespace(SummaryWriter=opened("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=opened("wandb")))
    return found


def test_both_get_every_row(boards: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run"
    run.train(short(log="tensorboard,wandb", steps=4), path, show_progress=False)
    for name in ("tensorboard", "wandb"):
        board = boards[name]
        assert board.is_closed
        assert [step for key, _, step in board.seen if key == "loss"] == [2, 4, 6, 8]
        assert [step for key, _, step in board.seen if key == "accuracy/mean"] == [4, 8]
        assert any(key == "lr" for key, _, _ in board.seen)
    assert boards["tensorboard"].options["log_dir"] == str(path / "tensorboard")
    assert boards["wandb"].options["config"]["sparsity"] == 30.0


@pytest.mark.parametrize("where", ["open", "add", "close"])
def test_one_that_fails_does_not_end_the_run(
    boards: dict[str, Any], tmp_path: Path, where: str
) -> None:
    boards["fails_at"] = where
    with pytest.warns(RuntimeWarning, match=f"goes on without wandb, which failed: {where} failed"):
        run.train(short(log="wandb", steps=2, tasks=2), tmp_path / "run", show_progress=False)
    assert (tmp_path / "run" / "summary.json").exists()


def test_what_is_missing_is_named_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="run `pip install wandb`"):
        run.train(short(log="wandb"), tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        RunConfig.from_preset("split-digits", log="wandbb")
