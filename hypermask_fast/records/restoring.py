"""The settings of a run, and what they have changed since its newest checkpoint."""

from __future__ import annotations

from typing import Any

from hypermask_fast.errors import CheckpointError, ConfigError
from hypermask_fast.files import checkpoint
from hypermask_fast.files.fit import in_a_sentence
from hypermask_fast.files.folder import RunFolder
from hypermask_fast.settings.changes import Changes, changed
from hypermask_fast.settings.config import RunConfig


def settings_of(folder: RunFolder) -> RunConfig:
    """Return the settings in a run's folder.

    Raises:
        ConfigError: They cannot be read, or are wrong.
    """
    try:
        return RunConfig.from_toml(folder.config_path)
    except ConfigError as error:
        raise ConfigError(f"{folder.config_path} cannot be used: {error}") from error


def changes_since(folder: RunFolder, config: RunConfig, *, allowed: bool) -> Changes:
    """Return what a run's settings have changed since its newest checkpoint: by name, both values.

    Nothing where there is no checkpoint, or an earlier version made it, which kept no settings.

    Args:
        folder: That of the run.
        config: Its settings now.
        allowed: Accept changes.

    Raises:
        CheckpointError: There are changes that are not accepted, or the checkpoint is damaged or
            was there and is missing.
    """
    path = checkpoint.latest(folder.checkpoints)
    if path is None:
        folder.require_no_checkpoint_was_made()
        return {}
    saved = checkpoint.load_latest_state(folder.checkpoints).get("settings")
    if saved is None or saved == config.to_toml():
        return {}
    with in_a_sentence(path):
        try:
            changes = changed(RunConfig.from_toml(f"{saved}\n"), config)
        except ConfigError as error:
            raise CheckpointError(
                f"the settings in the checkpoint {path} cannot be used: {error}"
            ) from error
    if changes and not allowed:
        now = ", ".join(f"{name}={value!r}" for name, (_, value) in changes.items())
        before = ", ".join(f"{name}={value!r}" for name, (value, _) in changes.items())
        raise CheckpointError(
            f"{folder.config_path} gives {now} and the checkpoint {path} was made with {before}; "
            "put that back, or accept the change with `hypermask resume --allow-changes "
            f"{folder.path}`"
        )
    return changes


def as_json(changes: Changes) -> dict[str, Any]:
    """Return changes as a checkpoint keeps them: by name, a list of both values."""
    return {name: list(pair) for name, pair in changes.items()}
