"""Methods by name, those from outside of the package among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from torch import nn

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import setting
from hypermask_fast.methods import registry
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.hypermask.learner import HyperMask
from hypermask_fast.methods.hypermask.settings import HyperMaskSettings
from hypermask_fast.methods.settings import MethodSettings
from hypermask_fast.settings.build import make_learner
from hypermask_fast.settings.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class OtherSettings(MethodSettings):
    """Settings of a method of these tests."""

    strength: float = setting(2.0, "how strong it is", low=0.0)
    beta: float = setting(5.0, "a setting that HyperMask has, too", low=0.0)


@dataclass(frozen=True, kw_only=True)
class ClashingSettings(MethodSettings):
    """Settings with a name that training has."""

    lr: float = setting(2.0, "a rate", low=0.0)


class Other(Learner):
    """A learner of these tests."""

    def __init__(self, net: nn.Module, *, settings: OtherSettings) -> None:
        super().__init__(net, capacity=1)
        self.strength = settings.strength


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def register(name: str, settings: type, learner: type = Other) -> None:
    registry.register(name, f"{__name__}:{settings.__name__}", f"{__name__}:{learner.__name__}")


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[OtherSettings.__module__])
    register("other", OtherSettings)


def test_hypermask_is_registered() -> None:
    assert registry.methods()[0] == "hypermask"
    assert registry.settings_of("hypermask") is HyperMaskSettings
    assert registry.learner_of("hypermask") is HyperMask
    assert registry.name_of(HyperMaskSettings()) == "hypermask"


@pytest.mark.usefixtures("other")
def test_a_method_from_outside_is_chosen_configured_and_made() -> None:
    config = RunConfig.from_preset("split-digits", method="other", strength=3)
    # The preset's settings of another method do not count.
    assert config.method == OtherSettings(strength=3.0)
    assert config.method_name == "other"
    assert RunConfig.from_toml(config.to_toml()) == config
    learner = make_learner(config, (1, 8, 8), 2)
    assert isinstance(learner, Other)
    assert learner.strength == 3.0


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"strenth": 1}, "did you mean 'strength'", id="name"),
        pytest.param({"strength": -1}, "strength=-1.0 is out of range", id="range"),
        pytest.param({"sparsity": 3.0}, "of method='hypermask' and method='other'", id="owner"),
        pytest.param({"moments": "bfloat16"}, "use moments='float32'", id="moments"),
    ],
)
def test_its_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_options(method="other", steps=1, **options)


@pytest.mark.usefixtures("other")
def test_names_are_taken_once() -> None:
    register("other", OtherSettings)
    with pytest.raises(ConfigError, match="'hypermask' is registered already"):
        register("hypermask", OtherSettings)
    register("clashing", ClashingSettings)
    with pytest.raises(ConfigError, match=r"'lr' is a setting of \[method\] and of \[training\]"):
        RunConfig.from_options(method="clashing", steps=1)


def test_what_is_not_registered_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method='hypermsk' .*did you mean 'hypermask'"):
        registry.learner_of("hypermsk")
    with pytest.raises(ConfigError, match="OtherSettings belong to no method"):
        registry.name_of(OtherSettings())
