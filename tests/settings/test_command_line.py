"""The settings as options of the command line."""

from __future__ import annotations

import argparse

import pytest

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import parsed
from hypermask_fast.settings.command_line import Parser, add_arguments, from_arguments
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.options import options_of


def _parser(*words: str, preset: str = "") -> argparse.ArgumentParser:
    parser = Parser(prog="hypermask train")
    add_arguments(parser, words, preset=preset)
    return parser


def _parse(*words: str, preset: str = "") -> RunConfig:
    return from_arguments(_parser(*words, preset=preset).parse_args(words))


def _parsed(name: str, text: str) -> object:
    return parsed(name, options_of("hypermask", "mlp")[name].kind, text)


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
        pytest.param("graph", "auto", "auto", id="word"),
        pytest.param("graph", "false", False, id="bool-or-word"),
    ],
)
def test_text_is_converted_by_the_type_of_the_setting(name: str, text: str, value: object) -> None:
    converted = _parsed(name, text)
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
        pytest.param("compile", "none", "give true or false, or auto", id="word"),
        pytest.param("compile", "atuo", "did you mean 'auto'", id="misspelt-word"),
        pytest.param("ramp", "flase", "did you mean 'false'", id="misspelt-bool"),
    ],
)
def test_text_that_cannot_be_converted_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _parsed(name, text)


def test_command_line_changes_its_preset() -> None:
    config = _parse(
        *("--preset", "cifar100-resnet", "--steps", "5", "--hidden", "3,4", "--resnet-n", "1"),
        *("--augment", "no", "--validation", "none", "--lam", "1e-2"),
    )
    assert config == RunConfig.from_preset(
        "cifar100-resnet",
        steps=5,
        hidden=(3, 4),
        resnet_n=1,
        augment=False,
        validation=None,
        lam=0.01,
    )
    assert _parse("--epochs", "3", "--mlp-hidden", "") == RunConfig.from_options(
        epochs=3, mlp_hidden=()
    )


def test_a_preset_is_assumed_where_neither_one_nor_a_scenario_is_given() -> None:
    assert _parse("--seed", "3", preset="split-digits") == RunConfig.from_preset(
        "split-digits", seed=3
    )
    words = ("--scenario", "split-digits", "--steps", "4")
    assert _parse(*words, preset="split-digits") == RunConfig.from_options(steps=4)


def test_command_line_leaves_no_trace_of_options_that_are_not_given() -> None:
    parser = _parser()
    assert vars(parser.parse_args([])) == {}
    with pytest.raises(ConfigError, match="lr=-1"):
        from_arguments(parser.parse_args(["--steps", "1", "--lr", "-1"]))


def test_help_names_every_option_with_its_default_and_choices() -> None:
    text = " ".join(_parser().format_help().split())
    for name, option in options_of("hypermask", "mlp").items():
        assert f"--{name.replace('_', '-')} " in text
        assert option.rules["help"]
    assert "[100,100]" in text
    assert "[300.0]" in text
    assert "(batch, per_task, frozen) [per_task]" in text
    titles = ["preset:", "method:", "scenario:", "network:", "training:", "run:"]
    lines = _parser().format_help().splitlines()
    assert [line for line in lines if line in titles] == titles


def test_help_shows_the_chosen_networks_options_and_the_presets_values() -> None:
    text = " ".join(_parser("--preset", "cifar100-resnet").format_help().split())
    assert "--resnet-n " in text
    assert "--mlp-hidden " not in text
    assert "(replaces steps) [200]" in text
    assert "hypernetwork's hidden layers [32,32]" in _parser(preset="split-digits").format_help()
    text = _parser("--preset", "cifar100-resnet", "--network", "mlp").format_help()
    assert "--resnet-n " not in text
    assert "--mlp-hidden " in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--preset", "split-minst"], "did you mean 'split-mnist'", id="preset"),
        pytest.param(["--method", "hypermsk"], "did you mean 'hypermask'", id="method"),
        pytest.param(["--network", "rsnet"], "did you mean 'resnet'", id="network"),
        pytest.param(["--lr"], "--lr: expected one argument; see `hypermask train -", id="value"),
    ],
)
def test_mistakes_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _parse(*words)
