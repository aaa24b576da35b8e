"""The ready-made scenarios by name: their sizes and options; imports no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from hypermask_fast.errors import ConfigError
from hypermask_fast.factories import is_factory, parsed_options
from hypermask_fast.fields import Settings, setting


class DataSetSize(NamedTuple):
    """Numbers of training and test images, (C, H, W) of one, and the number of classes."""

    train: int
    test: int
    shape: tuple[int, int, int]
    classes: int


_DIGITS = DataSetSize(1442, 355, (1, 8, 8), 10)
_MNIST = DataSetSize(60000, 10000, (1, 28, 28), 10)
_CIFAR100 = DataSetSize(50000, 10000, (3, 32, 32), 100)
_CIFAR10_100 = DataSetSize(100000, 20000, (3, 32, 32), 110)
_TINY_IMAGENET = DataSetSize(100000, 10000, (3, 64, 64), 200)


@dataclass(frozen=True)
class ScenarioEntry:
    """What is known of a scenario before its data are read.

    Attributes:
        data_set: Sizes of its data set.
        tasks: Its tasks, where it is not given another number.
        validation: Training images of a task that are held out, where it is given no number.
        classes: Of a task; None: all of the data set, with moved pixels.
        pad: Zeros on all four sides of an image.
        validation_per_class: ``validation`` is of each class.
        normalized: Images are normalized where nothing else is asked for.
        first: Training and test images of the first task, where the others share what is left;
            None: all have as many.
    """

    data_set: DataSetSize
    tasks: int
    validation: int
    classes: int | None = None
    pad: int = 0
    validation_per_class: bool = False
    normalized: bool = False
    first: tuple[int, int] | None = None


SCENARIOS = {
    "split-digits": ScenarioEntry(_DIGITS, 5, 40, classes=2),
    "permuted-digits": ScenarioEntry(_DIGITS, 5, 200),
    "split-mnist": ScenarioEntry(_MNIST, 5, 1000, classes=2, normalized=True),
    "permuted-mnist": ScenarioEntry(_MNIST, 10, 5000, pad=2),
    "permuted-mnist-28": ScenarioEntry(_MNIST, 10, 0, normalized=True),
    "rotated-mnist": ScenarioEntry(_MNIST, 36, 0, normalized=True),
    "split-fashion-mnist": ScenarioEntry(_MNIST, 5, 1000, classes=2, normalized=True),
    "permuted-fashion-mnist": ScenarioEntry(_MNIST, 10, 5000, pad=2),
    "split-cifar100": ScenarioEntry(_CIFAR100, 10, 500, classes=10, normalized=True),
    "split-cifar100-5": ScenarioEntry(_CIFAR100, 20, 0, classes=5, normalized=True),
    "split-cifar100-5-random": ScenarioEntry(_CIFAR100, 20, 0, classes=5, normalized=True),
    "split-cifar100-fecam": ScenarioEntry(
        _CIFAR100, 5, 50, classes=20, validation_per_class=True, normalized=True
    ),
    "split-cifar10-100": ScenarioEntry(
        _CIFAR10_100, 6, 0, classes=10, normalized=True, first=(50000, 10000)
    ),
    "split-tiny-imagenet": ScenarioEntry(_TINY_IMAGENET, 40, 250, classes=5, normalized=True),
}
SCENARIO_NAMES = tuple(SCENARIOS)


_OF_CATALOGUE = ("validation", "augment", "normalize", "identity_first")


@dataclass(frozen=True, kw_only=True)
class ScenarioSettings(Settings):
    """A ready-made scenario, or a function that makes one, and its options."""

    name_is: ClassVar[str] = "scenario"

    name: str = setting("split-digits", "sequence of tasks", choices=SCENARIO_NAMES, factory=True)
    data_dir: str = setting("data", "folder that holds the data files")
    tasks: int | None = setting(None, "number of tasks (none: the scenario's own)", low=1)
    validation: int | None = setting(
        None,
        "training examples of each task held out for validation (none: the scenario's own)",
        low=0,
    )
    augment: bool | None = setting(None, "augment the training images (none: as the scenario does)")
    normalize: bool | None = setting(
        None, "normalize the images by mean and deviation (none: as the scenario does)"
    )
    identity_first: bool | None = setting(
        None, "leave the pixels of the first task in place (none: as the scenario does)"
    )
    scenario_options: str = setting(
        "", "arguments of a function that makes the scenario: NAME=VALUE,..., values as in TOML"
    )

    def check(self) -> None:
        if not self.is_own and self.scenario_options:
            raise ConfigError(
                f"scenario_options={self.scenario_options!r} is of functions, and scenario="
                f"{self.name!r} is of the catalogue; remove it"
            )
        for name in _OF_CATALOGUE if self.is_own else ():
            value = getattr(self, name)
            if value is not None:
                raise ConfigError(
                    f"{name}={value!r} is of the catalogue's scenarios, and scenario={self.name!r} "
                    "makes its tasks itself; remove it, or give the function an option"
                )
        self.arguments()

    @property
    def is_own(self) -> bool:
        """Whether a function of one's own makes it."""
        return is_factory(self.name)

    def arguments(self) -> dict[str, Any]:
        """Return the function's options by name."""
        return parsed_options("scenario_options", self.scenario_options)

    @classmethod
    def merged(cls, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """As in the base; options of a scenario of one kind do not go on to the other kind."""
        before, now = values.get("name", cls.name), changes.get("name", values.get("name", ""))
        if is_factory(before) != is_factory(now):
            values = {k: v for k, v in values.items() if k == "data_dir"}
        return {**values, **changes}
