"""The run configuration: presets against the published table, TOML, options, and errors."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import Settings
from hypermask_fast.methods.hypermask.settings import HyperMaskSettings
from hypermask_fast.networks.catalogue import ResNetSettings
from hypermask_fast.scenarios.catalogue import SCENARIOS
from hypermask_fast.settings.config import RunConfig, presets
from hypermask_fast.settings.options import classes_of
from hypermask_fast.training.settings import TrainingSettings

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
    return RunConfig.from_options(**{"steps": 10, **overrides})


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
    assert (config.preset, config.scenario.tasks) == (name, tasks)
    assert config.method_name == "hypermask"
    assert isinstance(config.method, HyperMaskSettings)
    assert (config.method.head, config.method.init, config.method.ramp) == ("full", "default", True)
    values = config.options()
    assert {setting: values[setting] for setting in published} == published


def test_short_permuted_mnist_differs_from_the_published_one_in_two_settings() -> None:
    short = RunConfig.from_preset("permuted-mnist-10-short")
    published = RunConfig.from_preset("permuted-mnist-10").options()
    changed = {name: v for name, v in short.options().items() if v != published[name]}
    assert changed == {"preset": short.preset, "mlp_hidden": (100, 100), "steps": 500}


@pytest.mark.parametrize("name", presets())
def test_every_preset_survives_toml(name: str) -> None:
    config = RunConfig.from_preset(name)
    assert RunConfig.from_toml(config.to_toml()) == config


def test_toml_keeps_every_setting_exactly(tmp_path: Path) -> None:
    config = RunConfig.from_options(
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
    text = 'preset = "cifar100-resnet"\n[training]\nsteps = 7\n[method]\nlam = 2'
    config = RunConfig.from_toml(text)
    assert config == RunConfig.from_preset("cifar100-resnet", steps=7, lam=2.0)
    assert config.training.epochs is None
    text = "[training]\nsteps = 10\n[method]\nhidden = [5]"
    assert RunConfig.from_toml(text) == _config(hidden=(5,))


def test_a_list_without_tables_is_read_as_it_was_written_before_there_were_tables() -> None:
    text = 'preset = "cifar100-resnet"\nsteps = 7\nlam = 2\nmlp_hidden = [9]'
    config = RunConfig.from_toml(text)
    assert config == RunConfig.from_preset("cifar100-resnet", steps=7, lam=2.0)
    assert config.training.epochs is None
    assert RunConfig.from_toml("steps = 10\nhidden = [5]") == _config(hidden=(5,))
    assert RunConfig.from_toml('steps = 10\nnetwork = "resnet"\nresnet_n = 1') == _config(
        network="resnet", resnet_n=1
    )
    # Graphs and compiled code "where it works" were written as true.
    text = 'steps = 10\nmethod = "hypermask"\ngraph = true\ncompile = false\nepochs = "none"'
    assert RunConfig.from_toml(text) == _config(graph="auto", compile=False)


def test_another_network_does_not_take_over_the_options_of_the_presets_network() -> None:
    config = RunConfig.from_preset("split-digits", network="resnet", resnet_n=1)
    assert config.network == ResNetSettings(n=1)
    text = 'preset = "split-digits"\n[network]\nname = "resnet"\nn = 1'
    assert RunConfig.from_toml(text) == config
    assert RunConfig.from_preset("split-digits").replace(network="resnet", resnet_n=1) == config


def test_options_make_the_same_configuration_again() -> None:
    config = _config(network="resnet", resnet_k=1, sparsity=30, seed=3)
    assert RunConfig.from_options(**config.options()) == config
    assert config == RunConfig(
        method=HyperMaskSettings(sparsity=30.0),
        network=ResNetSettings(k=1),
        training=TrainingSettings(steps=10),
        run=dataclasses.replace(RunConfig.from_options(steps=1).run, seed=3),
    )


def test_steps_replace_epochs_and_the_reverse() -> None:
    config = RunConfig.from_preset("split-mnist").replace(epochs=2)
    assert (config.training.steps, config.training.epochs) == (None, 2)
    config = config.replace(steps=9)
    assert (config.training.steps, config.training.epochs) == (9, None)
    assert config.replace(lr=0.5) == RunConfig.from_preset("split-mnist", steps=9, lr=0.5)


def test_values_take_the_type_of_their_setting() -> None:
    config = _config(lr=1, hidden=[3, 4], data_dir=Path("a") / "b", seed=np.int64(3))
    assert isinstance(config.method, HyperMaskSettings)
    assert type(config.training.lr) is float
    assert type(config.run.seed) is int
    assert config.method.hidden == (3, 4)
    assert config.scenario.data_dir == str(Path("a") / "b")


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
    pytest.param({"graph": "atuo"}, "graph='atuo' .* give true or false, or auto", id="words"),
    pytest.param({"method": "hypermsk"}, "did you mean 'hypermask'", id="method"),
    pytest.param({"method": None}, "method=None is of type NoneType", id="no-method"),
    pytest.param({"capacity": 4}, "capacity=4 is less than tasks=5", id="tasks-of-scenario"),
    pytest.param({"mlp_hidden": (3, 0)}, "mlp_hidden=.* at least 1", id="network-option"),
    pytest.param(
        {"resnet_n": 2}, "resnet_n is a setting of network='resnet' and network='mlp'", id="owner"
    ),
    pytest.param(
        {"moments": "bfloat16", "head": "chunked"}, "needs head='full', not 'chunked'", id="moments"
    ),
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
        RunConfig.from_options(steps=1, sparsity=0.3)
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
        pytest.param(lambda: RunConfig.from_toml("steps = 1\nbta = 2"), "'beta'", id="flat-name"),
        pytest.param(
            lambda: RunConfig.from_toml("[training]\nlrr = 1"),
            r"'lrr' is unknown \(did you mean 'lr'",
            id="toml-name",
        ),
        pytest.param(
            lambda: RunConfig.from_toml("[traning]\nlr = 1"), "mean 'training'", id="toml-table"
        ),
        pytest.param(lambda: RunConfig.from_toml("[table]\nsteps = 1"), "'table'", id="no-table"),
        pytest.param(
            lambda: RunConfig.from_toml("steps = 1\n[method]\nbeta = 2"),
            "steps=1 stands outside of the tables; put it into the table",
            id="mixed",
        ),
        pytest.param(
            lambda: RunConfig.from_toml('[network]\nname = "rsnet"'), "mean 'resnet'", id="choice"
        ),
        pytest.param(
            lambda: RunConfig.from_toml("[network]\nname = 3"), "network=3 is of", id="toml-type"
        ),
        pytest.param(
            lambda: RunConfig.from_toml('[scenario]\nname = "split-cifar"'),
            "scenario='split-cifar' is unknown.*mean 'split-cifar100'",
            id="toml-scenario",
        ),
        pytest.param(
            lambda: RunConfig.from_toml("[training]\nsparsity = 3.0"),
            r"'sparsity' stands in \[training\] and is one of \[method\]; move it",
            id="other-table",
        ),
        pytest.param(
            lambda: RunConfig.from_toml('method = "hypermask"\n[training]\nsteps = 1'),
            r"method='hypermask' stands outside of the tables; put it into \[method\]",
            id="table-as-value",
        ),
        pytest.param(
            lambda: RunConfig.from_toml("runs/absent"),
            "read from runs/absent .*No such file",
            id="absent",
        ),
        pytest.param(lambda: _config(lr=float("inf")), "lr=inf is not finite", id="infinite"),
        pytest.param(lambda: _config(data_dir="a\udcff"), "is not Unicode", id="not-unicode"),
        pytest.param(lambda: _config(lr=10**400), "lr=1000", id="more-than-a-float"),
        pytest.param(lambda: _config(seed=2**64), "seed=18446744073709551616 is out", id="seed"),
        pytest.param(
            lambda: _config(warmup_steps=11), "warmup_steps=11 is more than steps=10", id="warm-up"
        ),
        pytest.param(
            lambda: _config(warmup_steps=1, schedule="plateau"),
            "warmup_steps=1 changes the rate",
            id="warm-up-plateau",
        ),
        pytest.param(
            lambda: _config(optimizer="sgd", moments="bfloat16"),
            "'bfloat16' are Adam's",
            id="moments-of-sgd",
        ),
        pytest.param(lambda: _config(momentum=0.9), "momentum=0.9 is of sgd", id="momentum"),
        pytest.param(
            lambda: _config(optimizer="sgd", graph=True),
            "graph is True and the optimizer is 'sgd'",
            id="graph-of-sgd",
        ),
        pytest.param(
            lambda: RunConfig.from_toml('[network]\nname = "resnet"\nhidden = [3]'),
            "'hidden' is unknown",
            id="other-network",
        ),
        pytest.param(lambda: RunConfig.from_toml("steps"), "cannot be read", id="toml-syntax"),
        pytest.param(lambda: RunConfig.from_toml("no.toml"), r"no\.toml", id="toml-missing"),
        pytest.param(lambda: RunConfig.from_toml("preset = 3"), "preset=3", id="toml-preset"),
        pytest.param(lambda: RunConfig.from_toml('lr = "none"\nsteps = 1'), "lr=", id="flat-none"),
        pytest.param(
            lambda: RunConfig.from_toml('[training]\nlr = "none"\nsteps = 1'), "lr=", id="none"
        ),
        pytest.param(lambda: RunConfig(training=3), "training=3 .*TrainingSettings", id="table"),
    ],
)
def test_unknown_names_and_files_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_every_setting_says_what_it_is_and_what_its_default_is() -> None:
    for cls in classes_of("hypermask", "mlp").values():
        assert issubclass(cls, Settings)
        for field in dataclasses.fields(cls):
            assert field.metadata["help"]
            text = " ".join((cls.__doc__ or "").split()).lower()
            assert f"{field.name}: {field.metadata['help']}.".lower() in text
            assert f"default: {field.default!r}.".lower() in text


def test_constructors_name_the_settings_and_explain_them() -> None:
    from hypermask_fast import HyperMask, Trainer

    for made, cls in ((HyperMask, HyperMaskSettings), (Trainer, TrainingSettings)):
        parameters = inspect.signature(made).parameters
        for field in dataclasses.fields(cls):
            assert parameters[field.name].default == field.default
            assert f"        {field.name}: " in (made.__doc__ or "")
        assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
        assert max(map(len, (made.__doc__ or "").splitlines())) <= 100


def test_settings_are_read_without_pytorch() -> None:
    code = (
        "import sys, hypermask_fast.settings.config as c, hypermask_fast.settings.command_line\n"
        "from hypermask_fast.methods import registry\n"
        "from hypermask_fast.networks.catalogue import NETWORKS\n"
        "from hypermask_fast.scenarios.catalogue import SCENARIOS\n"
        "c.RunConfig.from_preset('split-mnist').to_toml(), registry.settings_of('hypermask')\n"
        "print({'torch', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_scenarios_to_choose_from_are_those_that_can_be_made() -> None:
    from hypermask_fast.scenarios import SCENARIO_NAMES, published

    assert tuple(SCENARIOS) == SCENARIO_NAMES == tuple(published._BUILDERS)
