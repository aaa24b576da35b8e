"""Runs of a network and of tasks that functions of one's own make."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hypermask_fast.cli import main
from hypermask_fast.errors import CheckpointError, ConfigError, PlanError
from hypermask_fast.planning.plan import plan
from hypermask_fast.runs import run
from hypermask_fast.settings.comparison import ComparisonConfig
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.studies import comparison, seeds
from tests.support.own_cases import SOURCE, write_module
from tests.support.run_cases import assert_same_run, stopped

NAME = "own_networks"
SETTINGS: dict[str, Any] = {
    "network": f"{NAME}:make_net",
    "scenario": f"{NAME}:make_tasks",
    "steps": 6,
    "batch_size": 8,
    "embedding_dim": 3,
    "hidden": (4,),
    "capacity": 3,
    "log_every": 2,
    "checkpoint_every": 0.0,
    "device": "cpu",
}


def short(**changes: Any) -> RunConfig:
    return RunConfig.from_options(**{**SETTINGS, **changes})


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_module(tmp_path, NAME)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    return tmp_path / f"{NAME}.py"


@pytest.mark.parametrize("after", [3, 6, 9])
def test_it_continues_bit_identically(tmp_path: Path, after: int) -> None:
    # The tasks are Datasets with random transforms.
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run.train(short(), whole, show_progress=False)
    stopped(short(), parts, after)
    result = run.resume(parts, show_progress=False)
    assert result.changes == []
    assert_same_run(whole, parts)
    learner = run.load(parts).learner
    assert [task.name for task in learner.tasks] == ["points 0", "points 1"]
    assert "gain" in dict(learner.net.named_parameters())


def test_each_half_goes_with_the_catalogue(tmp_path: Path) -> None:
    shared = {"tasks": 2, "steps": 2, "device": "cpu"}
    config = RunConfig.from_preset("split-digits", network=f"{NAME}:make_net", **shared)
    assert config == RunConfig.from_toml(config.to_toml())
    assert run.train(config, tmp_path / "network", show_progress=False).accuracy.shape == (3, 2)
    config = RunConfig.from_preset("split-digits", scenario=f"{NAME}:make_tasks", steps=2)
    assert run.train(config, tmp_path / "tasks", show_progress=False).task_names[1] == "points 1"


def test_tokens_train(tmp_path: Path) -> None:
    names = {"network": f"{NAME}:Words", "scenario": f"{NAME}:tokens"}
    config = short(**names, steps=100, lr=0.02, lam=0.0, hidden=(20,), batch_size=20)
    config = config.replace(checkpoint_every=100.0)
    found = run.train(config, tmp_path / "tokens", show_progress=False)
    assert np.diag(found.accuracy[1:]).min() > 80
    learner = run.load(tmp_path / "tokens").learner
    assert dict(learner.net.named_parameters())["words.weight"].shape == (9, 4)


def test_another_file_is_noticed(tmp_path: Path, module: Path) -> None:
    path = tmp_path / "run"
    stopped(short(), path, 9)
    module.write_text(f"{SOURCE}\n# changed", encoding="utf-8")
    with pytest.warns(RuntimeWarning, match="another environment, .*network_file from '"):
        result = run.resume(path, show_progress=False)
    assert {"network_file", "scenario_file"} <= result.changes[0]["environment"].keys()
    # A network of another shape is not taken.
    sys.modules.pop(NAME)
    module.write_text(SOURCE.replace("width=5", "width=6"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"left\.weight"):
        run.load(path)


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    def gains(folder: str) -> list[float]:
        path = tmp_path / folder
        list(seeds.train(short(steps=1, lr=1e-9), path, 2, show_progress=False))
        nets = (run.load(path / f"seed-{seed}").learner.net for seed in (0, 1))
        return [dict(net.named_parameters())["gain"].item() for net in nets]

    first = gains("a")
    assert first[0] != first[1]
    random.random()
    np.random.rand()  # noqa: NPY002 - the function draws from it
    assert gains("b") == first


def test_methods_are_compared(tmp_path: Path) -> None:
    options = {k: v for k, v in SETTINGS.items() if k not in ("embedding_dim", "hidden")}
    options = {k: v for k, v in options.items() if k not in ("capacity", "checkpoint_every")}
    options |= {"supsup.density": 0.5, "steps": 2}
    config = ComparisonConfig.from_preset("split-digits", ["hypermask", "supsup"], options, seeds=1)
    found = comparison.compare(config, tmp_path / "compare", show_progress=False)
    assert not found.failed
    assert f"{NAME}:make_tasks" in found.title


def test_a_plan_counts_it_and_its_data() -> None:
    found = plan(short(network_options="width=500"), memory=10**9)
    parameters = 2 * (4 * 500 + 500) + 1 + 500 * 2 + 2
    assert found.found.facts["mask_entries"] == parameters
    assert found.size.tasks == 2
    assert found.size.input_shape == (4,)
    assert plan(short(network=f"{NAME}:Words", scenario=f"{NAME}:tokens")).size.dtype is torch.int64
    with pytest.raises(ConfigError, match="what would fit"):
        plan(short(network_options="width=100000"), memory=260 * 2**20).require()


def test_a_plan_where_the_network_needs_values(tmp_path: Path) -> None:
    preset = {"preset": "split-digits", "tasks": 2, "steps": 2, "device": "cpu"}
    config = RunConfig.from_options(network=f"{NAME}:valued", **preset)
    assert plan(config).found.facts["mask_entries"] == 130
    config = config.replace(network_options="in_forward=true")
    with pytest.raises(PlanError, match="cannot be planned"):
        plan(config)
    with pytest.warns(RuntimeWarning, match="starts without a plan"):
        found = run.train(config, tmp_path / "run", show_progress=False)
    assert np.isfinite(found.accuracy[-1]).all()


def test_a_command_finds_a_module_of_its_folder(tmp_path: Path) -> None:
    write_module(tmp_path, "of_this_folder")
    words = ["train", "--network", "of_this_folder:make_net", "--scenario"]
    words += ["of_this_folder:make_tasks", "--scenario-options", "count=3", "--tasks", "2"]
    words += ["--steps", "2", "--batch-size", "8", "--hidden", "4", "--out", "run"]
    # Not python -m, which has the folder on its path.
    code = f"import sys; from hypermask_fast.cli import main; sys.exit(main({words!r}))"
    script = tmp_path / "bin" / "hypermask.py"
    script.parent.mkdir()
    script.write_text(code)
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert (tmp_path / "run" / "accuracy.csv").exists()


def test_torchvisions_networks_are_found_beside_any_build_of_torch() -> None:
    code = "from hypermask_fast.factories import load_factory as load\n"
    code += "print(load('network', 'torchvision.models:resnet18').__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "resnet18"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"network": "no_such_module:make"}, "there is no module 'no_such_module' in .*; start in"),
        ({"network": f"{NAME}:make_nets"}, "has no 'make_nets' .did you mean 'make_net'"),
        ({"network": f"{NAME}:SOME.thing"}, "has no 'SOME'"),
        ({"network": f"{NAME}:torch"}, "is of type module; name a function"),
        ({"network": f"{NAME}:"}, "names no function; give MODULE:FUNCTION"),
        ({"network": f"{NAME}:no_module"}, r"returned \[1\], a list; return an nn.Module"),
        ({"network": f"{NAME}:narrow"}, "outputs of shape .2, 1. .* needs 2 outputs"),
        ({"network": f"{NAME}:raises"}, "KeyError: 'weights', own_networks.py, line"),
        ({"network": f"{NAME}:wants_more"}, "wants 'depth'.*--network-options depth="),
        ({"network": f"{NAME}:Words"}, "fails on inputs of shape .2, 1, 8, 8"),
        ({"network_options": "widht=3"}, "has 'widht'.*did you mean 'width'"),
        ({"network_options": "width"}, "cannot be read; give NAME=VALUE"),
        ({"network_options": "} \n x = {"}, "cannot be read; give NAME=VALUE"),
        ({"scenario": f"{NAME}:no_tasks"}, "at least one task"),
        ({"scenario": f"{NAME}:no_module"}, r"a task 1; give a Task"),
        ({"scenario": f"{NAME}:twice"}, "two tasks called 'points 0'"),
        ({"scenario": f"{NAME}:make_tasks", "tasks": 3}, "more than the 2 of"),
        ({"scenario": f"{NAME}:make_tasks", "validation": 3}, "of the catalogue's scenarios"),
        ({"scenario": f"{NAME}:make_tasks", "selection": "best"}, "no validation examples"),
        ({"scenario_options": "a=3"}, "of functions, and scenario='split-digits'"),
        ({"scenario": f"{NAME}:make_tasks", "capacity": 1}, "capacity=1 is less than tasks=2"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    preset = {} if "scenario" in options else {"preset": "split-digits", "tasks": 2}
    given = {"network": f"{NAME}:make_net", "steps": 2, "device": "cpu", **preset, **options}
    with pytest.raises(ConfigError, match=says):
        run.train(RunConfig.from_options(**given), tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()


OTHER_TASKS = """

def examples(count, width, dtype):
    y = torch.arange(count) % 2
    return torch.randn(count, width).to(dtype), y


def flat(input_shape, num_outputs):
    return nn.Linear(input_shape[0], num_outputs)


def narrow_test():
    wide = examples(20, 5, torch.float32)
    return {"a": (wide, wide), "b": (wide, examples(20, 3, torch.float32))}


def double():
    return {name: (examples(20, 5, torch.float64),) * 2 for name in "ab"}
"""


@pytest.mark.parametrize("network", [f"{NAME}:flat", "mlp"])
def test_test_inputs_that_the_network_does_not_take_are_refused_first(
    tmp_path: Path, module: Path, network: str
) -> None:
    module.write_text(SOURCE + OTHER_TASKS, encoding="utf-8")
    config = short(network=network, scenario=f"{NAME}:narrow_test")
    with pytest.raises(ConfigError, match=f"{network}' fails on inputs of shape .2, 3. and"):
        run.train(config, tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("network", [f"{NAME}:flat", "mlp"])
def test_inputs_of_numpys_default_type_train(tmp_path: Path, module: Path, network: str) -> None:
    module.write_text(SOURCE + OTHER_TASKS, encoding="utf-8")
    config = short(network=network, scenario=f"{NAME}:double")
    assert run.train(config, tmp_path / "run", show_progress=False).accuracy.shape == (3, 2)


def test_any_keyword_gets_the_classes(tmp_path: Path) -> None:
    config = RunConfig.from_preset("split-digits", network=f"{NAME}:any_keyword", tasks=2, steps=1)
    run.train(config, tmp_path / "run", show_progress=False)


def test_help_and_owners(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--network", f"{NAME}:make_net", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--network-options" in text
    assert "MODULE:FUNCTION" in text
    assert main(["train", "--network-options", "a=3"]) == 2
    assert "is an option of --network MODULE:FUNCTION" in capsys.readouterr().err
