"""Checkpoints of a run: by one process, or by all that share a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hypermask_fast.errors import ConfigError
from hypermask_fast.files import checkpoint
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.sharded import shard_of
from hypermask_fast.runs.together import writes
from hypermask_fast.training.distributed.processes import joined
from hypermask_fast.training.divided import divided_in, parts_of_state
from hypermask_fast.training.trainer import Trainer


def takes_part(learner: Learner) -> bool:
    """Return whether this process has a part of a run's checkpoints, or of what it measures."""
    return writes() or shard_of(learner) is not None


def check_joined(learner: Learner) -> None:
    """Raise ConfigError where processes share a learner's head and do not train it together."""
    own = shard_of(learner)
    if own is not None and own.place.world > 1 and joined() is None:
        raise ConfigError(
            f"the learner has {own} of a head that processes share, and they do not train it "
            "together; make learner and run inside `with hmf.data_parallel():`"
        )


def agreed_due(own: Callable[[], bool], learner: Learner) -> Callable[[], bool]:
    """Return what tells whether a checkpoint is due; all that share a head after the same step.

    Args:
        own: Tells it by the clock of this process.
        learner: That of the run.
    """
    processes = joined()
    shares = processes is not None and shard_of(learner) is not None
    return processes.agreed_due(own) if processes is not None and shares else own


def save(folder: Path, step: int, trainer: Trainer, more: Mapping[str, Any]) -> None:
    """Write a checkpoint; where processes share a head, in all of them.

    Args:
        folder: Of the run's checkpoints.
        step: Steps of the run so far.
        trainer: Its trainer.
        more: What the state holds beside that of the trainer.

    Raises:
        CheckpointError, TrainingError: As of `checkpoint.save`.
        ProcessLost: Another process ended, or did not answer in time.
    """
    learner = trainer.learner
    tensors, state = trainer.state()
    own, dims = shard_of(learner), divided_in(learner, trainer.optimizers, tensors)
    if own is None:
        checkpoint.save(folder, step, tensors, {"trainer": state, **more}, divided=dims)
        return
    from hypermask_fast.files import row_checkpoint  # whose imports take long

    state["task"].pop("rows")
    parts = parts_of_state(tensors, dims, own)
    of_rows = {name: part for name, part in parts.items() if name in dims}
    rest = {name: tensors[name] for name in parts if name not in dims}
    row_checkpoint.save(folder, step, rest, of_rows, {"trainer": state, **more}, own.place)


def load_latest(folder: Path, learner: Learner) -> checkpoint.Checkpoint:
    """Return a run's newest checkpoint with this process's rows, in all that share the head.

    Args:
        folder: Of the run's checkpoints.
        learner: That of the run, which it is loaded into.

    Raises:
        CheckpointError: As of `checkpoint.load_latest`.
    """
    own = shard_of(learner)
    saved = checkpoint.load_latest(folder, shard=own)
    if own is not None:
        saved.state["trainer"]["task"]["rows"] = [own.first, own.last, own.size]
    return saved
