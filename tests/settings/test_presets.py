"""Presets with several names, and the benchmarks that methods are compared on."""

from __future__ import annotations

import pytest

from hypermask_fast import cli
from hypermask_fast.settings.comparison import ComparisonConfig, preset_of
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.presets import load_preset


@pytest.mark.parametrize(
    ("name", "other"), [("tiny-imagenet", "tiny-resnet"), ("split-cifar100", "cifar100-resnet")]
)
def test_a_preset_may_have_two_names(name: str, other: str) -> None:
    assert load_preset(name) == load_preset(other)
    assert RunConfig.from_preset(name).tables() == RunConfig.from_preset(other).tables()


def test_a_preset_of_other_tasks_is_not_a_methods_own() -> None:
    assert preset_of("hnet", "split-mnist") == "hnet-split-mnist"
    assert preset_of("hyperinterval", "split-cifar100") == "hyperinterval-split-cifar100"
    # Of 20 tasks.
    assert preset_of("exssnet", "split-cifar100") == "split-cifar100"


def test_methods_are_compared_on_split_cifar100() -> None:
    methods = ("hypermask", "hnet", "hyperinterval", "supsup", "exssnet")
    found = ComparisonConfig.from_preset("split-cifar100", methods)
    assert {config.network.name for config in found.runs.values()} == {"resnet"}
    assert {config.tasks for config in found.runs.values()} == {10}


def test_a_batch_of_all_processes_is_the_batch_size(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--preset", "tiny-imagenet", "--global-batch", "1024"]
    assert cli.main([*words, "--print-config"]) == 0
    assert "batch_size = 1024  # preset tiny-imagenet: 16" in capsys.readouterr().out
    assert cli.main([*words, "--batch-size", "16"]) == 2
    assert "are names of one setting" in capsys.readouterr().err
