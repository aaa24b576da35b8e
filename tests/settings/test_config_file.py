"""Settings from a file on the command line, and printed as one."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from hypermask_fast.errors import ConfigError
from hypermask_fast.settings import comparison_line
from hypermask_fast.settings.command_line import Parser, add_arguments, from_arguments
from hypermask_fast.settings.comparison import ComparisonConfig
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.settings.config_file import annotated, line_of


def _parse(*words: str, preset: str = "split-digits") -> RunConfig:
    parser = Parser(prog="hypermask train")
    add_arguments(parser, words, preset=preset)
    return from_arguments(parser.parse_args(words))


def _compared(*words: str) -> ComparisonConfig:
    parser: argparse.ArgumentParser = Parser(prog="hypermask compare")
    comparison_line.add_arguments(parser, words, preset="split-digits")
    return comparison_line.from_arguments(parser.parse_args(words))


def _file(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text)
    return str(path)


def test_a_part_changes_the_preset_and_the_line_changes_both(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        'preset = "permuted-mnist-10"\n[training]\nlr = 0.01\nsteps = 7\n[scenario]\n'
        'validation = "none"\n[method]\nsparsity = 10\n',
    )
    wanted = RunConfig.from_preset(
        "permuted-mnist-10", lr=0.01, epochs=2, validation=None, sparsity=20.0
    )
    assert _parse("--config", file, "--sparsity", "20", "--epochs", "2") == wanted
    other = _parse("--config", file, "--preset", "split-digits")
    assert other == RunConfig.from_preset(
        "split-digits", lr=0.01, steps=7, validation=None, sparsity=10.0
    )


def test_a_file_without_a_preset_changes_the_default_one(tmp_path: Path) -> None:
    file = _file(tmp_path, "[training]\nlr = 0.5\n")
    assert _parse("--config", file) == RunConfig.from_preset("split-digits", lr=0.5)
    whole = RunConfig.from_options(scenario="split-digits", steps=3, method="hnet")
    file = _file(tmp_path, whole.to_toml())
    assert _parse("--config", file) == whole
    hnet = _file(tmp_path, '[method]\nname = "hnet"\nbeta = 0.5\n')
    assert _parse("--config", hnet) == RunConfig.from_preset(
        "split-digits", method="hnet", beta=0.5
    )


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "split-digits"},
        {"preset": "cifar100-resnet", "steps": 5, "validation": None, "hidden": (3,)},
        {"preset": "split-digits", "method": "supsup", "data_dir": 'a "b"\\c'},
        {"scenario": "split-digits", "steps": 2, "network": "resnet", "mlp_hidden": None},
    ],
)
def test_printed_settings_are_read_back(tmp_path: Path, options: dict[str, object]) -> None:
    config = RunConfig.from_options(**{k: v for k, v in options.items() if k != "mlp_hidden"})
    text = annotated(config.tables(), config.preset)
    assert _parse("--config", _file(tmp_path, text)) == config
    assert RunConfig.from_toml(text) == config


def test_what_differs_is_marked() -> None:
    config = RunConfig.from_preset("split-digits", epochs=2, hidden=(3,))
    marked = [
        line for line in annotated(config.tables(), config.preset).splitlines() if "#" in line
    ]
    preset = RunConfig.from_preset("split-digits")
    assert marked == [
        f"hidden = [3]  # preset split-digits: {','.join(map(str, preset.method.hidden))}",
        f'steps = "none"  # preset split-digits: {preset.training.steps}',
        "epochs = 2  # preset split-digits: none",
    ]
    plain = RunConfig.from_options(scenario="split-digits", steps=2, lr=0.5)
    assert "lr = 0.5  # default: 0.001\n" in annotated(plain.tables(), "")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[training]\nlr = 1\n\nspets = 5\n", 4, "did you mean 'steps'"),
        ("[training]\nlr = 1\n[trainig]\nsteps = 5\n", 3, "did you mean 'training'"),
        ("[method]\n# lr = 3\n'sparsity' = 120\n", 3, "sparsity=120.0 is out of range"),
        ('[method]\nsparsity = "much"\n', 2, "give a finite number"),
        ('[training]\nselection = "lats"\n', 2, "did you mean 'last'"),
        ("[training]\nsparsity = 3\n", 2, "one of method 'hypermask'"),
        ("training.spets = 5\n", 1, "did you mean 'steps'"),
        ("method = 3\n[training]\nlr = 1\n", None, "stands outside of the tables"),
    ],
)
def test_mistakes_have_the_nearest_name_and_a_line(
    tmp_path: Path, text: str, line: int | None, words: str
) -> None:
    file = _file(tmp_path, text)
    for parse in (_parse, _compared):
        with pytest.raises(ConfigError) as caught:
            parse("--config", file)
        assert words in str(caught.value)
        assert line is None or f"{file}, line {line}: " in str(caught.value)
        assert "\n" not in str(caught.value)


def test_lines_that_are_not_found_are_left_out() -> None:
    assert line_of("training = { lr = 1 }\n", "training", "lr") is None
    assert line_of('["training"]\n"lr" = 1\n', "training", "lr") == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [("none.toml", "No such file"), (".", "directory"), ("own.toml", "cannot be read")],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str, words: str) -> None:
    _file(tmp_path, "lr = = 3\n")
    with pytest.raises(ConfigError, match=words):
        _parse("--config", str(tmp_path / name))


def test_a_comparison_takes_the_settings_of_all_and_those_of_a_method(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        '[method]\nname = "hnet"\nbeta = 0.5\n[training]\nsteps = 7\nlr = 0.5\n'
        "[network]\nhidden = [9, 8]\n",
    )
    config = _compared("--config", file, "--methods", "hnet,supsup", "--epochs", "3", "--lr=0.25")
    for run in config.runs.values():
        assert (run.training.lr, run.training.steps, run.training.epochs) == (0.25, None, 3)
        assert run.network.values()["hidden"] == (9, 8)
    assert config.runs["hnet"].method.values()["beta"] == 0.5
    assert config.runs["supsup"].preset == "supsup-split-digits"
    with pytest.raises(ConfigError, match="which is not compared"):
        _compared("--config", file, "--methods", "supsup")
