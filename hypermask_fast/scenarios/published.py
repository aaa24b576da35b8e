"""The scenarios of the published experiments, ready made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hypermask_fast.errors import ConfigError, nearest, shown
from hypermask_fast.fields import check_value
from hypermask_fast.scenarios.builders import permuted, rotated, split
from hypermask_fast.scenarios.catalogue import SCENARIO_NAMES
from hypermask_fast.scenarios.cifar10_100 import split_cifar10_100  # noqa: F401 - by its name below
from hypermask_fast.scenarios.datasets import (
    load_cifar100,
    load_digits,
    load_fashion_mnist,
    load_mnist,
)
from hypermask_fast.scenarios.images import ImageDataset
from hypermask_fast.scenarios.preprocess import cifar_options
from hypermask_fast.scenarios.scenario import Scenario
from hypermask_fast.scenarios.tiny_imagenet import split_tiny_imagenet  # noqa: F401 - likewise

_MNIST_MEAN, _MNIST_STD = (0.1307,), (0.3081,)
_FECAM_MEAN, _FECAM_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
# fmt: off
_FECAM_ORDER = (
    87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86,
    84, 96, 18, 24, 32, 45, 88, 11, 4, 67, 69, 66, 77, 47, 79, 93, 29, 50, 57, 83,
    17, 81, 41, 12, 37, 59, 25, 20, 80, 73, 1, 28, 6, 46, 62, 82, 53, 9, 31, 75,
    38, 63, 33, 74, 27, 22, 36, 3, 16, 21, 60, 19, 70, 90, 89, 43, 5, 42, 65, 76,
    40, 30, 23, 85, 2, 95, 56, 48, 71, 64, 98, 13, 99, 7, 34, 55, 54, 26, 35, 39,
)
# fmt: on
_FECAM_CLASSES = 20


def _flag(name: str, value: bool) -> bool:
    return check_value(name, bool, value)


def split_digits(tasks: int | None = None, validation: int = 40, augment: bool = False) -> Scenario:
    """Return the UCI digits as (0, 1), (2, 3), (4, 5), (6, 7), (8, 9), 8x8.

    A small scenario of this package that needs no download; not part of a published experiment.

    Args:
        tasks: Keep only the first tasks. Default: all 5.
        validation: Held-out images of each task, out of about 288. Default 40.
        augment: Random crop with padding 1. Default False.
    """
    return split(
        load_digits(),
        2,
        tasks=tasks,
        validation=validation,
        stratified=False,
        crop=1 if _flag("augment", augment) else 0,
    )


def permuted_digits(
    tasks: int = 5, validation: int = 200, seed: int = 0, identity_first: bool = False
) -> Scenario:
    """Return permuted UCI digits, 8x8: small, no download, not part of a published experiment.

    Args:
        tasks: Number of tasks. Default 5.
        validation: Held-out training images out of 1442. Default 200.
        seed: Selects the permutations. Default 0.
        identity_first: Leave the pixels of task 0 in place. Default False.
    """
    return permuted(
        load_digits(),
        tasks,
        validation=validation,
        stratified=False,
        seed=seed,
        identity_first=identity_first,
    )


def _split_mnist(
    dataset: ImageDataset,
    tasks: int | None,
    validation: int,
    augment: bool,
    normalize: bool,
) -> Scenario:
    return split(
        dataset,
        2,
        tasks=tasks,
        validation=validation,
        stratified=False,
        crop=4 if _flag("augment", augment) else 0,
        mean=_MNIST_MEAN if _flag("normalize", normalize) else None,
        std=_MNIST_STD if normalize else None,
    )


def split_mnist(
    root: str | Path,
    tasks: int | None = None,
    validation: int = 1000,
    augment: bool = True,
    normalize: bool = True,
) -> Scenario:
    """Return Split MNIST: (0, 1), (2, 3), (4, 5), (6, 7), (8, 9), as HyperMask was trained on it.

    HNET and HyperInterval use ``augment=False, normalize=False``.

    Args:
        root: Folder of the data sets; what is missing is downloaded.
        tasks: Keep only the first tasks. Default: all 5.
        validation: Held-out images of each task, the first ones. Default 1000.
        augment: Random crop to 28x28 with padding 4. Default True.
        normalize: Mean 0.1307, standard deviation 0.3081. Default True.
    """
    return _split_mnist(load_mnist(root), tasks, validation, augment, normalize)


def split_fashion_mnist(
    root: str | Path,
    tasks: int | None = None,
    validation: int = 1000,
    augment: bool = True,
    normalize: bool = True,
) -> Scenario:
    """Return Fashion-MNIST under the protocol of :func:`split_mnist`, its constants included."""
    return _split_mnist(load_fashion_mnist(root), tasks, validation, augment, normalize)


def permuted_mnist(
    root: str | Path,
    tasks: int = 10,
    pad: int = 2,
    validation: int = 5000,
    seed: int = 0,
    identity_first: bool = False,
) -> Scenario:
    """Return Permuted MNIST as HyperMask was trained on it: 32x32, no normalisation.

    HyperInterval holds out 500 images; HNET leaves task 0 in place.

    Args:
        root: Folder of the data sets; what is missing is downloaded.
        tasks: Number of tasks. Default 10.
        pad: Zeros added on all four sides before the permutation. Default 2.
        validation: Held-out training images, the first ones. Default 5000.
        seed: Selects the permutations. Default 0.
        identity_first: Leave the pixels of task 0 in place. Default False.
    """
    return permuted(
        load_mnist(root),
        tasks,
        pad=pad,
        seed=seed,
        validation=validation,
        stratified=False,
        identity_first=identity_first,
    )


def permuted_mnist_28(
    root: str | Path, tasks: int = 10, validation: int = 0, seed: int = 0
) -> Scenario:
    """Return Permuted MNIST as SupSup was trained on it: 28x28, normalised, nothing held out.

    Args:
        root: Folder of the data sets; what is missing is downloaded.
        tasks: Number of tasks. Default 10; published with 250.
        validation: Held-out training images, the first ones. Default 0.
        seed: Selects the permutations. Default 0.
    """
    return permuted(
        load_mnist(root),
        tasks,
        seed=seed,
        validation=validation,
        stratified=False,
        mean=_MNIST_MEAN,
        std=_MNIST_STD,
    )


def rotated_mnist(root: str | Path, tasks: int = 36, validation: int = 0) -> Scenario:
    """Return Rotated MNIST as SupSup was trained on it: turned by 10 degrees a task, normalised.

    Args:
        root: Folder of the data sets; what is missing is downloaded.
        tasks: Number of tasks. Default 36.
        validation: Held-out training images, the first ones. Default 0.
    """
    return rotated(
        load_mnist(root),
        tasks,
        validation=validation,
        stratified=False,
        mean=_MNIST_MEAN,
        std=_MNIST_STD,
    )


def permuted_fashion_mnist(
    root: str | Path,
    tasks: int = 10,
    pad: int = 2,
    validation: int = 5000,
    seed: int = 0,
    identity_first: bool = False,
) -> Scenario:
    """Return Fashion-MNIST under the protocol of :func:`permuted_mnist`."""
    return permuted(
        load_fashion_mnist(root),
        tasks,
        pad=pad,
        seed=seed,
        validation=validation,
        stratified=False,
        identity_first=identity_first,
    )


def split_cifar100(
    root: str | Path,
    tasks: int | None = None,
    validation: int = 500,
    augment: bool = True,
    normalize: bool = True,
    classes_per_task: int = 10,
    class_order: Sequence[int] | None = None,
) -> Scenario:
    """Return Split CIFAR-100, 10 tasks of 10 classes in natural order, as HyperMask used it.

    Args:
        root: Folder of the data sets; what is missing is downloaded.
        tasks: Keep only the first tasks. Default: all.
        validation: Held-out images of each task, the first ones. Default 500.
        augment: Random crop to 32x32 with padding 4, and random horizontal flip. Default True.
        normalize: ImageNet's mean and standard deviation. Default True.
        classes_per_task: Default 10; HyperInterval also uses 5, for 20 tasks.
        class_order: Global class ids in the order in which tasks take them. Default: natural.
    """
    return split(
        load_cifar100(root),
        classes_per_task,
        class_order=class_order,
        tasks=tasks,
        validation=validation,
        stratified=False,
        **cifar_options(augment, normalize),
    )


def split_cifar100_5(
    root: str | Path,
    tasks: int | None = None,
    validation: int = 0,
    augment: bool = True,
    normalize: bool = True,
) -> Scenario:
    """Return CIFAR-100 in 20 tasks of 5 classes in natural order, nothing held out (ExSSNeT).

    SupSup draws the order of the classes: :func:`split_cifar100_5_random`.

    Args:
        root, tasks, validation, augment, normalize: As for :func:`split_cifar100`.
    """
    return split_cifar100(root, tasks, validation, augment, normalize, classes_per_task=5)


def split_cifar100_5_random(
    root: str | Path,
    tasks: int | None = None,
    validation: int = 0,
    augment: bool = True,
    normalize: bool = True,
    seed: int = 0,
) -> Scenario:
    """Return CIFAR-100 in 20 tasks of 5 classes in SupSup's order of a seed, nothing held out.

    Args:
        root, tasks, validation, augment, normalize: As for :func:`split_cifar100`.
        seed: Of NumPy's ``RandomState``, whose permutation the order is; its low 32 bits count.
            Default 0.
    """
    check_value("seed", int, seed)
    order = np.random.RandomState(seed % 2**32).permutation(100).tolist()
    return split_cifar100(root, tasks, validation, augment, normalize, 5, order)


def split_cifar100_fecam(
    root: str | Path,
    tasks: int | None = None,
    validation: int = 50,
    augment: bool = True,
    normalize: bool = True,
) -> Scenario:
    """Return CIFAR-100 in 5 tasks of 20 classes, in the class order of HyperMask with FeCAM.

    As in the published run, local labels ascend with the global class id within a task. Its
    brightness jitter (63/255) and AutoAugment's CIFAR-10 policy are left out here. Its setups of 6,
    11 and 21 tasks are not offered: they train classes twice and others never.

    Args:
        root: Folder of the data sets; what is missing is downloaded.
        tasks: Keep only the first tasks. Default: all 5.
        validation: Held-out images of each class, the first ones. Default 50.
        augment: Random crop to 32x32 with padding 4, and random horizontal flip. Default True.
        normalize: CIFAR-100's mean and standard deviation. Default True.
    """
    order = [
        class_id
        for start in range(0, len(_FECAM_ORDER), _FECAM_CLASSES)
        for class_id in sorted(_FECAM_ORDER[start : start + _FECAM_CLASSES])
    ]
    return split(
        load_cifar100(root),
        _FECAM_CLASSES,
        class_order=order,
        tasks=tasks,
        validation=validation,
        validation_per_class=True,
        **cifar_options(augment, normalize, _FECAM_MEAN, _FECAM_STD),
        name="split-cifar100-fecam",
    )


# The functions above and those imported, by the names in the catalogue.
_BUILDERS: dict[str, Callable[..., Scenario]] = {
    name: globals()[name.replace("-", "_")] for name in SCENARIO_NAMES
}


def make_scenario(
    name: str,
    root: str | Path | None = None,
    *,
    tasks: int | None = None,
    validation: int | None = None,
    augment: bool | None = None,
    normalize: bool | None = None,
    identity_first: bool | None = None,
    seed: int = 0,
) -> Scenario:
    """Return a ready-made scenario by name.

    Args:
        name: One of :data:`SCENARIO_NAMES`.
        root: Folder of the data sets; not needed for the digits.
        tasks, validation, augment, normalize, identity_first: As for the scenario's own function,
            "permuted-mnist" being :func:`permuted_mnist` and so on. Default: None, that function's
            default.
        seed: Selects the permutations, or the classes' order where that is random. Default 0.

    Raises:
        ConfigError: the name is unknown, the scenario needs a root, has no such option, or a number
            is out of range.
        DataError: files are missing and cannot be downloaded, or a file is damaged.
    """
    if not isinstance(name, str) or name not in _BUILDERS:
        raise ConfigError(
            f"there is no scenario {shown(name)}{nearest(name, _BUILDERS)}; use one of "
            f"{', '.join(_BUILDERS)}"
        )
    given = {"augment": augment, "normalize": normalize, "identity_first": identity_first}
    for option, value in given.items():
        check_value(option, bool, value, None)
    build = _BUILDERS[name]
    takes = inspect.signature(build).parameters
    options: dict[str, Any] = {"tasks": tasks, "validation": validation}
    for option, value in given.items():
        if option in takes:
            options[option] = value
        elif value:
            raise ConfigError(
                f"{option} is {value}, and the scenario {name!r} has no {option}; leave it out"
            )
    options = {option: value for option, value in options.items() if value is not None}
    if "seed" in takes:
        options["seed"] = seed
    if "root" not in takes:
        return build(**options)
    if root is None:
        raise ConfigError(f"the scenario {name!r} needs a folder for its files; give root")
    return build(root, **options)
