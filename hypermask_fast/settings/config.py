"""The settings of a run: one flat, frozen dataclass, its checks, its TOML form and its options."""

from __future__ import annotations

import argparse
import dataclasses
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypermask_fast.errors import ConfigError, nearest
from hypermask_fast.settings.fields import Kind, checked, kinds_of, parsed, setting, toml_value
from hypermask_fast.settings.presets import load_preset, presets

__all__ = [
    "METHODS",
    "NETWORKS",
    "SCENARIOS",
    "RunConfig",
    "add_arguments",
    "from_arguments",
    "load_preset",
    "overrides_from",
    "parse_field",
    "presets",
]

METHODS = ("hypermask",)
SCENARIOS = (
    "split-digits",
    "permuted-digits",
    "split-mnist",
    "permuted-mnist",
    "split-fashion-mnist",
    "permuted-fashion-mnist",
    "split-cifar100",
    "split-cifar100-fecam",
)
NETWORKS = ("mlp", "zenkenet", "zenkenet64", "resnet", "lenet-300-100")
_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a training run; exactly one of ``steps`` and ``epochs`` is given.

    ``dataclasses.fields(RunConfig)`` holds a sentence about every setting in ``metadata["help"]``.
    Whole numbers are taken for floats and lists for tuples.

    Raises:
        ConfigError: A value has the wrong type, is out of range or is not one of the choices, or
            two settings contradict each other.
    """

    method: str = setting("hypermask", "continual-learning method", choices=METHODS)
    preset: str = setting("", "named settings to start from; the other options change them")
    scenario: str = setting("split-digits", "sequence of tasks", choices=SCENARIOS)
    data_dir: str = setting("data", "folder that holds the data files")
    tasks: int | None = setting(None, "number of tasks (none: the scenario's own)", low=1)
    validation: int | None = setting(
        None,
        "training examples of each task held out for validation (none: the scenario's own)",
        low=0,
    )
    augment: bool | None = setting(None, "augment the training images (none: as the scenario does)")
    network: str = setting("mlp", "target network", choices=NETWORKS)
    mlp_hidden: tuple[int, ...] = setting((100, 100), "widths of the MLP's hidden layers", low=1)
    resnet_n: int = setting(3, "blocks in each of the ResNet's three groups", low=1)
    resnet_k: int = setting(2, "widening factor of the ResNet's three groups", low=1)
    embedding_dim: int = setting(48, "length of a task embedding", low=1)
    hidden: tuple[int, ...] = setting((100,), "widths of the hypernetwork's hidden layers", low=1)
    head: str = setting(
        "full",
        "last layer of the hypernetwork: all mask entries, or in chunks",
        choices=("full", "chunked"),
    )
    chunk_size: int = setting(8000, "mask entries of a chunk (chunked head)", low=1)
    chunk_embedding_dim: int = setting(32, "length of a chunk embedding (chunked head)", low=1)
    init: str = setting(
        "default",
        "initialisation of the hypernetwork: PyTorch's or hyperfan",
        choices=("default", "hyperfan"),
    )
    capacity: int = setting(128, "task embeddings made up front, at least the tasks", low=1)
    targets: str = setting(
        "full",
        "how the earlier tasks' logits are kept: as they are, in bfloat16 (half the memory), or as "
        "a copy of the full head (less where the tasks outnumber the last width in hidden)",
        choices=("full", "bfloat16", "frozen_head"),
    )
    regularized_tasks: int | None = setting(
        None, "earlier tasks drawn for each step's output regulariser (none: all)", low=1
    )
    sparsity: float = setting(
        0.0, "percent of each tensor's mask entries that are zero", low=0.0, high=100.0
    )
    ramp: bool = setting(True, "raise the sparsity from 0 linearly during the first task")
    beta: float = setting(
        0.01, "weight of the hypernetwork's output regulariser, divided by t squared", low=0.0
    )
    lam: float = setting(1e-3, "weight of the L1 drift of the target weights", low=0.0)
    masked_l1: bool = setting(True, "multiply the L1 drift by the mask")
    train_target: bool = setting(True, "train the target network's weights")
    bn: str = setting(
        "per_task",
        "batch norm: statistics of the batch (published), per task, or frozen",
        choices=("batch", "per_task", "frozen"),
    )
    dropout: str = setting(
        "always",
        "when dropout acts: always, in a task's first step only (published), or never",
        choices=("always", "first_step", "off"),
    )
    lr: float = setting(1e-3, "learning rate of Adam", above=0.0)
    weight_decay: float = setting(0.0, "weight decay of Adam", low=0.0)
    moments: str = setting(
        "float32",
        "type of Adam's moments of the full head: bfloat16 halves their memory",
        choices=("float32", "bfloat16"),
    )
    batch_size: int = setting(128, "examples in a training step", low=1)
    steps: int | None = setting(None, "training steps of a task (replaces epochs)", low=1)
    epochs: int | None = setting(
        None, "passes over the training data of a task (replaces steps)", low=1
    )
    schedule: str = setting(
        "constant",
        "learning rate: constant, or lowered when validation accuracy stalls",
        choices=("constant", "plateau"),
    )
    selection: str = setting(
        "last",
        "model kept after a task: the last, the best on validation data, or the best as "
        "published (accuracy from before the step, weights from after it)",
        choices=("last", "best", "best_published"),
    )
    check_every: int = setting(
        100, "steps between validation checks where the selection is not last", low=1
    )
    seed: int = setting(0, "seed of the initialisation, the tasks and the data order", low=0)
    device: str = setting(
        "auto", "auto (cuda where there is one, else cpu), cpu, cuda, cuda:1, ..."
    )
    graph: bool = setting(True, "replay training steps as a CUDA graph, on cuda where it works")
    compile: bool = setting(
        True, "torch.compile the target network and the trunk, on cuda where it works"
    )
    log_every: int = setting(50, "steps between rows of the log", low=1)
    checkpoint_every: float = setting(300.0, "seconds between checkpoints inside a task", low=0.0)
    eval_batch_size: int = setting(2000, "examples in an evaluation batch", low=1)

    def __post_init__(self) -> None:
        for name, field in _FIELDS.items():
            object.__setattr__(self, name, checked(field, _KINDS[name], getattr(self, name)))
        _check_together(self)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> RunConfig:
        """Return the settings of the preset ``name`` with ``overrides`` in place of its own.

        Raises:
            ConfigError: The preset or a setting is unknown, or a value is wrong.
        """
        return cls(**_merged(load_preset(name), {**overrides, "preset": name}))

    @classmethod
    def from_toml(cls, source: str | Path) -> RunConfig:
        """Read settings from a TOML file, or from TOML text.

        Settings that are not given come from the preset that ``preset`` names, else from the
        defaults. The string ``"none"`` stands for None.

        Args:
            source: A path, or a string: a path where it is one line that ends in ``.toml``, else
                the text itself.

        Raises:
            ConfigError: The file cannot be read or is not TOML, or a setting is wrong.
        """
        is_file = isinstance(source, Path) or ("\n" not in source and source.endswith(".toml"))
        origin = str(source) if is_file else "the text"
        try:
            text = Path(source).read_text(encoding="utf-8") if is_file else str(source)
            values = tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise ConfigError(f"settings cannot be read from {origin}: {error}") from error
        for name, value in values.items():
            if value == "none" and _kind(name).optional:
                values[name] = None
        preset = values.get("preset")
        base = load_preset(preset) if isinstance(preset, str) and preset else {}
        return cls(**_merged(base, values))

    def to_toml(self) -> str:
        """Return every setting as TOML text that ``from_toml`` reads back to an equal object."""
        return "".join(f"{name} = {toml_value(getattr(self, name))}\n" for name in _FIELDS)

    def replace(self, **overrides: Any) -> RunConfig:
        """Return a copy with ``overrides``; ``steps`` replaces ``epochs`` and the reverse.

        Raises:
            ConfigError: A setting is unknown or a value is wrong, or ``preset`` would change.
        """
        if overrides.get("preset", self.preset) != self.preset:
            raise ConfigError(
                f"preset={overrides['preset']!r} cannot replace {self.preset!r} in a finished "
                "configuration; use RunConfig.from_preset"
            )
        return RunConfig(**_merged({name: getattr(self, name) for name in _FIELDS}, overrides))


_FIELDS = {field.name: field for field in dataclasses.fields(RunConfig)}
_KINDS = kinds_of(RunConfig)


def _kind(name: str) -> Kind:
    if name not in _KINDS:
        raise ConfigError(
            f"setting {name!r} is unknown{nearest(name, _KINDS)}; remove or rename it"
        )
    return _KINDS[name]


def _merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    values = {**base, **overrides}
    for name in values:
        _kind(name)
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        if overrides.get(given) is not None and other not in overrides:
            values[other] = None
    return values


def _check_together(config: RunConfig) -> None:
    if config.preset and config.preset not in presets():
        load_preset(config.preset)
    if (config.steps is None) == (config.epochs is None):
        raise ConfigError(
            f"steps={config.steps} and epochs={config.epochs} are given; give exactly one of the "
            "two, for example steps=2000"
        )
    if config.tasks is not None and config.capacity < config.tasks:
        raise ConfigError(
            f"capacity={config.capacity} is less than tasks={config.tasks}; raise the capacity"
        )
    if config.moments != "float32" and config.head != "full":
        raise ConfigError(
            f"moments={config.moments!r} needs head='full', not {config.head!r}; use "
            "moments='float32'"
        )
    if config.validation == 0 and (config.selection != "last" or config.schedule == "plateau"):
        raise ConfigError(
            f"validation=0 leaves nothing to measure for selection={config.selection!r} and "
            f"schedule={config.schedule!r}; hold out examples or use 'last' and 'constant'"
        )
    kind, _, index = config.device.partition(":")
    has_bad_index = ":" in config.device and (kind == "auto" or not index.isdecimal())
    if kind not in _DEVICES or has_bad_index:
        raise ConfigError(
            f"device={config.device!r} is unknown{nearest(kind, _DEVICES)}; give auto, cpu, cuda "
            "or a device with its number such as cuda:1"
        )
    if 0 < config.sparsity < 1:
        warnings.warn(
            f"sparsity={config.sparsity} is in percent: it removes {config.sparsity} of 100 mask "
            f"entries; give {100 * config.sparsity:g} if a fraction was meant",
            stacklevel=4,
        )


def parse_field(name: str, text: str) -> Any:
    """Convert command-line ``text`` to the type of the setting ``name``.

    Booleans are true, yes, 1, false, no or 0; lists are integers with commas between them, and an
    empty text is an empty list; ``none`` is None where the setting may be None.

    Raises:
        ConfigError: The setting is unknown, or the text cannot be converted.
    """
    return parsed(name, _kind(name), text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one option for each setting to ``parser``; options that are not given leave no trace."""
    for name, field in _FIELDS.items():
        default, text = field.default, field.metadata["help"]
        choices = presets() if name == "preset" else field.metadata.get("choices")
        if choices:
            text += f" ({', '.join(choices)})"
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            metavar=_KINDS[name].metavar,
            help=f"{text} [{str(default).lower() or 'none'}]".replace("%", "%%"),
        )


def overrides_from(namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given on the command line, converted to their types.

    Raises:
        ConfigError: A text cannot be converted.
    """
    given = {name: value for name, value in vars(namespace).items() if name in _KINDS}
    return {
        name: parse_field(name, value) if isinstance(value, str) else value
        for name, value in given.items()
    }


def from_arguments(namespace: argparse.Namespace) -> RunConfig:
    """Return the settings of a command line: its preset, if any, changed by its other options.

    Raises:
        ConfigError: A setting is unknown or a value is wrong.
    """
    overrides = overrides_from(namespace)
    preset = overrides.pop("preset", "")
    return RunConfig.from_preset(preset, **overrides) if preset else RunConfig(**overrides)
