"""Settings of comparisons: where each method's come from, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hypermask_fast.errors import ConfigError
from hypermask_fast.methods import registry
from hypermask_fast.settings.comparison import ComparisonConfig
from hypermask_fast.settings.config import RunConfig


def test_a_method_takes_its_own_preset_or_the_scenario_with_its_defaults() -> None:
    found = ComparisonConfig.from_preset("split-mnist", ["hypermask", "hnet"])
    assert found.runs["hypermask"] == RunConfig.from_preset("split-mnist")
    assert found.runs["hnet"] == RunConfig.from_preset("hnet-split-mnist")
    other = ComparisonConfig.from_preset("permuted-digits", ["hypermask", "supsup"])
    supsup = other.runs["supsup"]
    assert supsup.method == registry.settings_of("supsup")()
    base = RunConfig.from_preset("permuted-digits")
    assert (supsup.scenario, supsup.network, supsup.training) == (
        base.scenario,
        base.network,
        base.training,
    )
    assert [found.source(method) for method in found.runs] == [
        "preset split-mnist",
        "preset hnet-split-mnist",
    ]
    assert other.source("supsup") == (
        "scenario, network and training of permuted-digits, defaults of supsup"
    )


def test_options_change_all_methods_that_have_them_or_one() -> None:
    options = {"steps": 9, "beta": 0.5, "hnet.beta": 0.25, "supsup.lr": 0.1, "seed": 3}
    found = ComparisonConfig.from_preset("split-digits", "hypermask,hnet,supsup", options, seeds=2)
    assert [config.training.steps for config in found.runs.values()] == [9, 9, 9]
    values = [config.options() for config in found.runs.values()]
    assert [value.get("beta") for value in values] == [0.5, 0.25, None]
    assert values[2]["lr"] == 0.1
    assert list(found.all_seeds) == [3, 4]
    assert found.source("supsup") == "preset supsup-split-digits, lr=0.1, steps=9"


def test_all_methods_are_compared_by_default() -> None:
    assert tuple(ComparisonConfig.from_preset("split-digits").runs) == registry.methods()


def test_a_file_is_read_back(tmp_path: Path) -> None:
    options = {"data_dir": 'a "\n[runs', "hnet.embedding_lr": 0.5}
    found = ComparisonConfig.from_preset(
        "split-mnist",
        ["hnet", "supsup"],
        options,
        seeds=7,
        infer="entropy,fecam",
        calibrate=True,
        calibrate_on="train",
    )
    path = tmp_path / "compare.toml"
    path.write_text(found.to_toml(), encoding="utf-8")
    again = ComparisonConfig.from_toml(path)
    assert again == found
    assert list(again.runs) == list(found.runs)


@pytest.mark.parametrize(
    "text", ["", "[runs", "seeds = 5", "runs = 3", '[runs.hnet]\npreset = "x"', "[runs.x.method]"]
)
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "compare.toml"
    path.write_text(text)
    with pytest.raises(
        ConfigError, match=r"compare\.toml cannot be used \(.*; restore it"
    ) as error:
        ComparisonConfig.from_toml(path)
    assert "\n" not in str(error.value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"methods": ["hnte"]}, "methods has 'hnte', .*did you mean 'hnet'"),
    "twice": ({"methods": "hnet,supsup,hnet"}, "methods has 'hnet' twice; give each once"),
    "preset": ({"preset": "split-minst"}, "preset 'split-minst' is unknown .*'split-mnist'"),
    "seeds": ({"seeds": 0}, "seeds=0 is out of range; give at least 1"),
    "last-seed": ({"options": {"seed": 2**64 - 1}}, "seed=18446744073709551619"),
    "score": ({"infer": ["entrpy"]}, "infer has 'entrpy', .*did you mean 'entropy'"),
    "calibrate": ({"calibrate": True}, "calibrate=True .*give infer too"),
    "calibrate-on": ({"calibrate_on": "train"}, "calibrate_on='train' is for a calibration"),
    "calibrate-on-test": (
        {"calibrate_on": "test", "calibrate": True, "infer": "entropy"},
        "calibrate_on='test'",
    ),
    "no-one's": ({"options": {"extent": 2.0}}, "'extent' is a setting of method='hyperinterval'"),
    "not-its": ({"options": {"hnet.sparsity": 2.0}}, "'hnet.sparsity' is a setting of method='hy"),
    "unknown": ({"options": {"stepz": 2}}, "setting 'stepz' is unknown"),
    "not-compared": (
        {"options": {"exssnet.lr": 2.0}},
        "'exssnet.lr' is of 'exssnet', which is not",
    ),
    "chosen": ({"options": {"method": "hnet"}}, "'method' is not one of the runs'"),
    "value": ({"options": {"hnet.beta": -1.0}}, "of hnet: beta=-1.0 is out of range"),
    "tasks": ({"options": {"hnet.tasks": 2}}, "tasks=2 of hnet is not tasks=5 of supsup"),
    "seed": ({"options": {"hnet.seed": 2}}, "seed=2 of hnet is not seed=0 of supsup"),
    "scenario": (
        {"options": {"hnet.scenario": "permuted-digits"}},
        "scenario='permuted-digits' of hnet is not scenario='split-digits' of supsup",
    ),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_a_sentence(given: dict[str, Any], said: str) -> None:
    good = {"preset": "split-digits", "methods": ["supsup", "hnet"]}
    with pytest.raises(ConfigError, match=said) as error:
        ComparisonConfig.from_preset(**{**good, **given})
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)


def test_runs_must_be_of_the_methods() -> None:
    hnet = RunConfig.from_preset("hnet-split-digits")
    with pytest.raises(ConfigError, match="runs has hnet as the settings of 'supsup'; give"):
        ComparisonConfig(runs={"supsup": hnet})
    with pytest.raises(ConfigError, match="names no method; give"):
        ComparisonConfig(runs={})
