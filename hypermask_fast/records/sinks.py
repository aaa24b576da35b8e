"""Copies of a run's log for TensorBoard and Weights & Biases, which cannot harm the run."""

from __future__ import annotations

import hashlib
import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from hypermask_fast.errors import ConfigError
from hypermask_fast.files.closing import Closing
from hypermask_fast.settings.options import sink_names

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


class _Sink(Protocol):
    """Where numbers go."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers by name, of a step of the run."""

    def close(self) -> None:
        """Bring all of them to where they go."""


class _TensorBoard:
    def __init__(self, module: Any, folder: Path, config: Mapping[str, Any], step: int) -> None:
        # What was written of later steps, before a kill, is left out where it is shown.
        log_dir = str(folder / "tensorboard")
        self._writer = module.SummaryWriter(log_dir=log_dir, purge_step=step + 1)

    def add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, module: Any, folder: Path, config: Mapping[str, Any], step: int) -> None:
        path = folder.resolve()
        self._run = module.init(
            project="hypermask_fast",
            dir=str(path),
            name=path.name,
            # That of the folder, so that a run that is resumed stays one.
            id=hashlib.sha256(str(path).encode()).hexdigest()[:16],
            resume="allow",
            config=dict(config),
        )

    def add(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


_KINDS: dict[str, Callable[[Any, Path, Mapping[str, Any], int], _Sink]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
}


def _opened(name: str, folder: Path, config: Mapping[str, Any], step: int) -> _Sink:
    return _KINDS[name](importlib.import_module(_MODULES[name]), folder, config, step)


def require(log: str) -> None:
    """Raise ConfigError where a library that a run is to log to is missing.

    Args:
        log: The setting ``log``.
    """
    for name in sink_names(log):
        try:
            importlib.import_module(_MODULES[name])
        except ImportError as error:
            raise ConfigError(
                f"log={log!r} needs {name}, which cannot be imported ({error}); run `pip install "
                f"{name}`, or leave it out"
            ) from error


class Sinks(Closing):
    """Where copies of a run's numbers go. One that fails is left out from then on, with a warning.

    Args:
        log: The setting ``log``, names separated by commas; "": nowhere.
        folder: Of the run.
        config: Its settings by flat name.
        step: Steps that the run has taken.
    """

    def __init__(
        self,
        log: str = "",
        folder: Path = Path(),
        config: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        self._open: dict[str, _Sink] = {}
        for name in sink_names(log):
            made = self._guarded(name, partial(_opened, name, folder, config or {}, step))
            if made is not None:
                self._open[name] = made

    def _guarded(self, name: str, does: Callable[[], Any]) -> Any:
        try:
            return does()
        except Exception as error:  # whatever a library of others raises
            self._open.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(
                f"the run goes on without {name}, which failed: {reason}",
                RuntimeWarning,
                stacklevel=4,
            )
            return None

    def add(self, values: Mapping[str, Any], step: int) -> None:
        """Send what are finite numbers.

        Args:
            values: By name.
            step: Of the whole run.
        """
        if not self._open:
            return
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        for name, sink in list(self._open.items()):
            self._guarded(name, partial(sink.add, numbers, step))

    def accuracies(self, names: Sequence[str], row: Iterable[float], step: int) -> None:
        """Send the accuracies after a task: of each task, and their mean over those given."""
        known = {n: float(a) for n, a in zip(names, row, strict=True) if not math.isnan(a)}
        if known:
            mean = sum(known.values()) / len(known)
            each = {f"accuracy/{name}": value for name, value in known.items()}
            self.add({**each, "accuracy/mean": mean}, step)

    def close(self) -> None:
        """Close all; calling it again does nothing."""
        for name, sink in list(self._open.items()):
            self._guarded(name, sink.close)
        self._open.clear()
