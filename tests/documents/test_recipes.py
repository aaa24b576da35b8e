"""The recipes for other libraries run as they stand."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest

from hypermask_fast.vision import import_torchvision

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
NEEDS = {
    "lightning_module": "lightning",
    "accelerate_loop": "accelerate",
    "avalanche_strategy": "avalanche",
}


def run(name: str) -> dict[str, Any]:
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
        return runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")


def test_every_recipe_is_here() -> None:
    assert sorted(path.stem for path in RECIPES.glob("*.py")) == sorted(NEEDS)


def test_lightning() -> None:
    accuracies = run("lightning_module")["accuracies"]
    for of_tasks in accuracies.values():
        assert min(of_tasks) > 0.9
    # Of one seed, the two ways differ by rounding alone; a test has 71 images.
    for one, other in zip(*accuracies.values(), strict=True):
        assert abs(one - other) < 0.06


def test_accelerate() -> None:
    assert min(run("accelerate_loop")["accuracies"]) > 0.9


def test_avalanche(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run("avalanche_strategy")["metrics"]
    for task in range(5):
        name = f"Top1_Acc_Exp/eval_phase/test_stream/Task{task:03}/Exp{task:03}"
        assert metrics[name] > 0.9
        assert name in capsys.readouterr().out or task
