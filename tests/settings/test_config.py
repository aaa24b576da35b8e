"""The run configuration: presets against the published table, TOML, options, and errors."""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypermask_fast.errors import ConfigError
from hypermask_fast.settings.config import (
    SCENARIOS,
    RunConfig,
    add_arguments,
    from_arguments,
    parse_field,
    presets,
)

_MNIST = {
    "network": "mlp",
    "masked_l1": True,
    "lr": 1e-3,
    "batch_size": 128,
    "schedule": "constant",
    "selection": "last",
    "epochs": None,
    "dropout": "first_step",
}
_PERMUTED = _MNIST | {
    "embedding_dim": 24,
    "hidden": (100, 100),
    "sparsity": 0.0,
    "beta": 5e-4,
    "lam": 1e-3,
    "steps": 5000,
    "validation": 5000,
    "mlp_hidden": (1000, 1000),
    "augment": False,
}
_SPLIT = _MNIST | {
    "embedding_dim": 128,
    "hidden": (25, 25),
    "sparsity": 30.0,
    "beta": 1e-3,
    "lam": 1e-3,
    "steps": 2000,
    "validation": 1000,
    "mlp_hidden": (400, 400),
    "augment": True,
}
_CIFAR = {
    "embedding_dim": 48,
    "hidden": (100,),
    "sparsity": 0.0,
    "beta": 0.01,
    "masked_l1": False,
    "lr": 1e-3,
    "batch_size": 32,
    "steps": None,
    "epochs": 200,
    "validation": 500,
    "augment": True,
    "schedule": "plateau",
    "selection": "best_published",
    "dropout": "first_step",
}
_RESNET = {"network": "resnet", "resnet_n": 3, "resnet_k": 2, "bn": "batch", "lam": 1.0}


def _config(**overrides: Any) -> RunConfig:
    return RunConfig(**{"steps": 10, **overrides})


def _parse(*words: str) -> RunConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(words))


@pytest.mark.parametrize(
    ("name", "tasks", "published"),
    [
        pytest.param("permuted-mnist-10", 10, _PERMUTED, id="permuted-mnist-10"),
        pytest.param("permuted-mnist-100", 100, _PERMUTED, id="permuted-mnist-100"),
        pytest.param("split-mnist", 5, _SPLIT, id="split-mnist"),
        pytest.param("cifar100-resnet", 10, _CIFAR | _RESNET, id="cifar100-resnet"),
        pytest.param(
            "cifar100-zenke", 10, _CIFAR | {"network": "zenkenet", "lam": 0.01}, id="cifar100-zenke"
        ),
    ],
)
def test_preset_holds_the_published_settings(
    name: str, tasks: int, published: dict[str, Any]
) -> None:
    config = RunConfig.from_preset(name)
    assert (config.preset, config.tasks) == (name, tasks)
    assert (config.head, config.init, config.ramp) == ("full", "default", True)
    assert {setting: getattr(config, setting) for setting in published} == published


def test_short_permuted_mnist_differs_from_the_published_one_in_two_settings() -> None:
    short = RunConfig.from_preset("permuted-mnist-10-short")
    published = RunConfig.from_preset("permuted-mnist-10")
    changed = {
        field.name: getattr(short, field.name)
        for field in dataclasses.fields(RunConfig)
        if getattr(short, field.name) != getattr(published, field.name)
    }
    assert changed == {"preset": short.preset, "mlp_hidden": (100, 100), "steps": 500}


@pytest.mark.parametrize("name", presets())
def test_every_preset_survives_toml(name: str) -> None:
    config = RunConfig.from_preset(name)
    assert RunConfig.from_toml(config.to_toml()) == config


def test_toml_keeps_every_setting_exactly(tmp_path: Path) -> None:
    config = RunConfig(
        preset="split-mnist",  # whose values, all changed here, must not come back
        data_dir='a "b"\\c\td\x7fé\n[x]',
        tasks=None,
        validation=None,
        augment=None,
        mlp_hidden=(),
        hidden=(7,),
        sparsity=1e2 / 3,
        ramp=False,
        beta=1e-300,
        lr=0.1 + 0.2,
        epochs=3,
        seed=2**62,
        checkpoint_every=0.0,
    )
    path = tmp_path / "lr=0.1.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    for source in (config.to_toml(), path, str(path)):
        assert RunConfig.from_toml(source) == config


def test_partial_toml_starts_from_its_preset_or_the_defaults() -> None:
    config = RunConfig.from_toml('preset = "cifar100-resnet"\nsteps = 7\nlam = 2')
    assert config == RunConfig.from_preset("cifar100-resnet", steps=7, lam=2.0)
    assert config.epochs is None
    assert RunConfig.from_toml("steps = 10\nhidden = [5]") == _config(hidden=(5,))


def test_steps_replace_epochs_and_the_reverse() -> None:
    config = RunConfig.from_preset("split-mnist").replace(epochs=2)
    assert (config.steps, config.epochs) == (None, 2)
    config = config.replace(steps=9)
    assert (config.steps, config.epochs) == (9, None)
    assert config.replace(lr=0.5) == RunConfig.from_preset("split-mnist", steps=9, lr=0.5)


def test_values_take_the_type_of_their_setting() -> None:
    config = _config(lr=1, hidden=[3, 4], data_dir=Path("a") / "b", seed=np.int64(3))
    assert type(config.lr) is float
    assert type(config.seed) is int
    assert config.hidden == (3, 4)
    assert config.data_dir == str(Path("a") / "b")


_WRONG = [
    pytest.param({"lr": "0.1"}, "lr='0.1' is of type str; give a finite number", id="string"),
    pytest.param({"lr": float("nan")}, "lr=nan .* finite", id="nan"),
    pytest.param({"lr": True}, "lr=True is of type bool", id="bool-for-float"),
    pytest.param({"seed": False}, "seed=False is of type bool", id="bool-for-int"),
    pytest.param({"batch_size": 1.5}, "batch_size=1.5 .* give an integer", id="float-for-int"),
    pytest.param({"ramp": 1}, "ramp=1 .* give true or false", id="int-for-bool"),
    pytest.param({"lr": None}, "lr=None", id="none-for-float"),
    pytest.param({"hidden": (3, 1.5)}, "hidden=.* list of integers", id="float-in-list"),
    pytest.param({"lr": 0.0}, "lr=0.0 is out of range; give more than 0", id="lr-zero"),
    pytest.param({"batch_size": 0}, "batch_size=0 .* at least 1", id="batch-zero"),
    pytest.param({"hidden": (3, 0)}, "hidden=.* at least 1", id="width-zero"),
    pytest.param({"sparsity": 100.5}, "sparsity=100.5 .* at most 100", id="sparsity-high"),
    pytest.param({"sparsity": -1}, "sparsity=-1.0 .* at least 0", id="sparsity-low"),
    pytest.param({"beta": -1e-9}, "beta=-1e-09", id="beta-negative"),
    pytest.param({"lam": -1.0}, "lam=-1.0", id="lam-negative"),
    pytest.param({"tasks": 200}, "capacity=128 is less than tasks=200", id="capacity"),
    pytest.param({"epochs": 2}, "steps=10 and epochs=2", id="steps-and-epochs"),
    pytest.param({"steps": None}, "steps=None and epochs=None", id="no-length"),
    pytest.param({"network": "resnt"}, "did you mean 'resnet'", id="network"),
    pytest.param({"bn": "pertask"}, "did you mean 'per_task'", id="bn"),
    pytest.param({"device": "cdua"}, "did you mean 'cuda'", id="device"),
    pytest.param({"device": "cuda:x"}, "device='cuda:x'", id="device-number"),
    pytest.param({"preset": "split-mnits"}, "did you mean 'split-mnist'", id="preset"),
    pytest.param({"validation": 0, "selection": "best"}, "validation=0", id="no-validation"),
]


@pytest.mark.parametrize(("settings", "message"), _WRONG)
def test_wrong_setting_is_refused_with_its_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _config(**settings)


@pytest.mark.parametrize(
    ("settings"),
    [
        pytest.param({"sparsity": 100}, id="sparsity-100"),
        pytest.param({"sparsity": 0}, id="sparsity-0"),
        pytest.param({"tasks": 128}, id="capacity-full"),
        pytest.param({"device": "cuda:3"}, id="device-number"),
        pytest.param({"mlp_hidden": ()}, id="no-hidden-layer"),
        pytest.param({"validation": 0}, id="no-validation-needed"),
    ],
)
def test_setting_at_its_bound_is_taken_without_a_warning(settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _config(**settings)


def test_sparsity_below_one_warns_at_the_caller() -> None:
    with pytest.warns(UserWarning, match=r"sparsity=0.3 is in percent.*30 if") as caught:
        RunConfig(steps=1, sparsity=0.3)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: RunConfig.from_preset("x"), "preset 'x' is unknown", id="preset"),
        pytest.param(
            lambda: RunConfig.from_preset("split-mnist", spasity=3), "'sparsity'", id="override"
        ),
        pytest.param(lambda: _config().replace(sede=1), "'seed'", id="replace"),
        pytest.param(
            lambda: _config().replace(preset="split-mnist"), "from_preset", id="replace-preset"
        ),
        pytest.param(lambda: RunConfig.from_toml("steps = 1\nbta = 2"), "'beta'", id="toml-name"),
        pytest.param(lambda: RunConfig.from_toml("[table]\nsteps = 1"), "'table'", id="toml-table"),
        pytest.param(lambda: RunConfig.from_toml("steps"), "cannot be read", id="toml-syntax"),
        pytest.param(lambda: RunConfig.from_toml("no.toml"), r"no\.toml", id="toml-missing"),
        pytest.param(lambda: RunConfig.from_toml("preset = 3"), "preset=3", id="toml-preset"),
        pytest.param(lambda: RunConfig.from_toml('lr = "none"\nsteps = 1'), "lr=", id="toml-none"),
    ],
)
def test_unknown_names_and_files_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        pytest.param("lr", "1e-3", 0.001, id="float"),
        pytest.param("seed", " 7", 7, id="int"),
        pytest.param("ramp", "No", False, id="bool-no"),
        pytest.param("ramp", "1", True, id="bool-1"),
        pytest.param("augment", "none", None, id="none"),
        pytest.param("hidden", "100, 50", (100, 50), id="list"),
        pytest.param("hidden", "", (), id="empty-list"),
        pytest.param("data_dir", "none", "none", id="string"),
    ],
)
def test_text_is_converted_by_the_type_of_the_setting(name: str, text: str, value: object) -> None:
    converted = parse_field(name, text)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        pytest.param("seed", "1.5", "seed='1.5' cannot be read; give an integer", id="int"),
        pytest.param("ramp", "maybe", "give true or false", id="bool"),
        pytest.param("augment", "maybe", "give true or false, or none", id="optional"),
        pytest.param("hidden", "3,,4", "give a list of integers", id="list"),
        pytest.param("lr", "none", "lr='none'", id="none"),
        pytest.param("lrr", "1", "did you mean 'lr'", id="name"),
    ],
)
def test_text_that_cannot_be_converted_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_field(name, text)


def test_command_line_changes_its_preset() -> None:
    config = _parse(
        *("--preset", "cifar100-resnet", "--steps", "5", "--hidden", "3,4", "--mlp-hidden", ""),
        *("--augment", "no", "--validation", "none", "--lam", "1e-2"),
    )
    assert config == RunConfig.from_preset(
        "cifar100-resnet",
        steps=5,
        hidden=(3, 4),
        mlp_hidden=(),
        augment=False,
        validation=None,
        lam=0.01,
    )
    assert _parse("--epochs", "3") == RunConfig(epochs=3)


def test_command_line_leaves_no_trace_of_options_that_are_not_given() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert vars(parser.parse_args([])) == {}
    with pytest.raises(ConfigError, match="lr=-1"):
        from_arguments(parser.parse_args(["--steps", "1", "--lr", "-1"]))


def test_help_names_every_option_with_its_default() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for field in dataclasses.fields(RunConfig):
        assert f"--{field.name.replace('_', '-')} " in text
        assert field.metadata["help"]
    assert "[100,100]" in text
    assert "[300.0]" in text


def test_the_scenarios_to_choose_from_are_those_that_can_be_made() -> None:
    """config.py has its own list, so that reading settings does not import torch."""
    from hypermask_fast.scenarios import SCENARIO_NAMES

    assert SCENARIOS == SCENARIO_NAMES
